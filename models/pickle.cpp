#include "models/pickle.h"

#include <limits>

namespace csml {

namespace {

/// The opcodes that are needed, by their names in Lib/pickletools.py.
class Pickler {
 public:
  Pickler() : out_("\x80\x03") {}  // PROTO 3

  void text(const std::string& utf8) {
    out_ += 'X';  // BINUNICODE
    number(utf8.size());
    out_ += utf8;
  }
  void bytes(const void* data, size_t size) {
    out_ += 'B';  // BINBYTES
    number(size);
    out_.append(static_cast<const char*>(data), size);
  }
  void integer(int64_t value) {
    CHECK(value >= 0 && value <= std::numeric_limits<int32_t>::max(), "pickle: extent {}", value);
    out_ += 'J';  // BININT
    number(static_cast<size_t>(value));
  }
  void boolean(bool value) { out_ += value ? '\x88' : '\x89'; }  // NEWTRUE, NEWFALSE
  void none() { out_ += 'N'; }
  void global(const std::string& module, const std::string& name) { out_ += "c" + module + "\n" + name + "\n"; }
  void begin_tuple() { out_ += '('; }  // MARK
  void end_tuple() { out_ += 't'; }
  void call() { out_ += 'R'; }       // REDUCE: callable(*arguments)
  void set_state() { out_ += 'b'; }  // BUILD
  void empty_dict() { out_ += '}'; }
  void set_item() { out_ += 's'; }
  std::string finish() { return std::move(out_) + '.'; }  // STOP

 private:
  void number(size_t value) {
    CHECK(value <= std::numeric_limits<uint32_t>::max(), "pickle: {} bytes are more than 4 GiB", value);
    for (int shift = 0; shift < 32; shift += 8) out_ += static_cast<char>(value >> shift & 0xFF);
  }

  std::string out_;
};

/// dtype("f4") of little endian: its state has the byte order, no fields, no alignment of its own.
void put_dtype(Pickler& p) {
  p.global("numpy", "dtype");
  p.begin_tuple(), p.text("f4"), p.boolean(false), p.boolean(true), p.end_tuple(), p.call();
  p.begin_tuple(), p.integer(3), p.text("<"), p.none(), p.none(), p.none();
  p.integer(0), p.integer(0), p.integer(0), p.end_tuple(), p.set_state();
}

/// What numpy.ndarray.__reduce__ gives: an empty array, then (version, shape, dtype, Fortran order, bytes).
void put_array(Pickler& p, const HostArray& array) {
  CHECK(array.dtype == DType::f32, "'{}' is {}; detectron2's file takes f32", array.name, name_of(array.dtype));
  p.global("numpy.core.multiarray", "_reconstruct");
  p.begin_tuple(), p.global("numpy", "ndarray");
  p.begin_tuple(), p.integer(0), p.end_tuple();
  p.bytes("b", 1), p.end_tuple(), p.call();
  p.begin_tuple(), p.integer(1), p.begin_tuple();
  for (int d = 0; d < array.shape.rank(); ++d) p.integer(array.shape[d]);
  p.end_tuple();
  put_dtype(p);
  p.boolean(false);
  p.bytes(array.data, static_cast<size_t>(array.shape.size()) * sizeof(float));
  p.end_tuple(), p.set_state();
}

}  // namespace

std::string detectron2_pickle(const std::vector<HostArray>& arrays, const std::string& author) {
  Pickler p;
  p.empty_dict();
  p.text("model"), p.empty_dict();
  for (const HostArray& array : arrays) p.text(array.name), put_array(p, array), p.set_item();
  p.set_item();
  p.text("__author__"), p.text(author), p.set_item();
  p.text("matching_heuristics"), p.boolean(true), p.set_item();
  return p.finish();
}

}  // namespace csml
