#!/bin/sh
# Runs a compiler (nvcc with -Xptxas -v) and keeps what ptxas says of the kernels' registers, memory and spills beside
# the object, as OBJECT.ptxas, which tests/kernel_resources.py reads; anything else the compiler says is passed on.
#
# usage: cmake/ptxas_report.sh COMPILER ARGUMENT...
object=
previous=
for argument; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
case $object in
  *.o) ;;
  *) exec "$@" ;; # links, and what CMake tries out
esac
"$@" 2>"$object.messages"
status=$?
report='^ptxas info|^ *[0-9]+ bytes stack frame,'
grep -E "$report" "$object.messages" >"$object.ptxas"
grep -Ev "$report" "$object.messages" >&2
rm -f "$object.messages"
exit $status
