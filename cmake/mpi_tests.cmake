# Tests that run several processes under mpirun; the label mpi names them (ctest -L mpi).
set(MPI_TESTS_ENVIRONMENT
    "OMP_NUM_THREADS=1"
    "OMP_WAIT_POLICY=passive"
    "OMPI_MCA_hwloc_base_binding_policy=none"
    "OMPI_MCA_btl_vader_single_copy_mechanism=none"  # needs ptrace, which containers refuse
    "ASAN_OPTIONS=detect_leaks=0"                    # of the MPI library
    "UBSAN_OPTIONS=print_stacktrace=1")
set(suffix "")
if(CSML_SANITIZE)
  set(suffix ".sanitized")
endif()

set(MPI_TESTS "")
foreach(processes 2 4)
  add_test(NAME comm.mpi${processes}${suffix}
           COMMAND ${MPIEXEC_EXECUTABLE} -np ${processes} --oversubscribe --allow-run-as-root $<TARGET_FILE:comm_test>
           WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  list(APPEND MPI_TESTS comm.mpi${processes}${suffix})
  add_test(NAME sync_batch_norm.mpi${processes}${suffix}
           COMMAND ${MPIEXEC_EXECUTABLE} -np ${processes} --oversubscribe --allow-run-as-root
                   $<TARGET_FILE:sync_batch_norm_test>
           WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  list(APPEND MPI_TESTS sync_batch_norm.mpi${processes}${suffix})
endforeach()
foreach(case equal wide resume faults bases sync accumulate timeline kit same)
  if(CSML_SANITIZE AND NOT case STREQUAL "wide")  # the others are about values and signals: once is enough
    continue()
  endif()
  add_test(NAME mpi.${case}${suffix}
           COMMAND ${Python3_EXECUTABLE} tests/mpi_test.py $<TARGET_FILE:csml> ${case}
           WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  list(APPEND MPI_TESTS mpi.${case}${suffix})
endforeach()
set_tests_properties(${MPI_TESTS} PROPERTIES
  ENVIRONMENT "${MPI_TESTS_ENVIRONMENT}" LABELS mpi TIMEOUT 1200 SKIP_RETURN_CODE 77 PROCESSORS 2)
