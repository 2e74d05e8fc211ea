#include "models/onnx.h"

#include <cstring>
#include <set>

namespace csml {

namespace {

constexpr int kIrVersion = 8, kOpset = 17;
constexpr int kFloat = 1;                                                  // TensorProto.DataType
constexpr int kAttributeFloat = 1, kAttributeInt = 2, kAttributeInts = 7;  // AttributeProto.AttributeType
constexpr int kVarint = 0, kBytes = 2, kFixed32 = 5;                       // wire types

/// One protobuf message under construction (protobuf.dev, "Encoding").
class Message {
 public:
  Message& integer(int field, uint64_t value) {
    tag(field, kVarint);
    varint(value);
    return *this;
  }
  Message& text(int field, std::string_view value) {
    tag(field, kBytes);
    varint(value.size());
    bytes_.append(value);
    return *this;
  }
  Message& message(int field, const Message& value) { return text(field, value.bytes_); }
  Message& real(int field, float value) {
    tag(field, kFixed32);
    char raw[sizeof(float)];
    std::memcpy(raw, &value, sizeof(float));  // little endian, as every machine csml runs on
    bytes_.append(raw, sizeof(float));
    return *this;
  }
  std::string take() { return std::move(bytes_); }

 private:
  void tag(int field, int wire) { varint(static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire)); }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

Message property(const std::string& key, const std::string& value) {
  return Message().text(1, key).text(2, value);  // StringStringEntryProto
}

Message attribute(const std::string& name, int64_t value) {
  return Message().text(1, name).integer(3, static_cast<uint64_t>(value)).integer(20, kAttributeInt);
}
Message attribute(const std::string& name, float value) {
  return Message().text(1, name).real(2, value).integer(20, kAttributeFloat);
}
Message attribute(const std::string& name, const std::vector<int64_t>& values) {
  Message m;
  m.text(1, name);
  for (int64_t v : values) m.integer(8, static_cast<uint64_t>(v));
  return m.integer(20, kAttributeInts);
}

/// ValueInfoProto of f32; an extent of 0 is named instead.
Message value_info(const std::string& name, const std::vector<std::pair<std::string, int64_t>>& extents) {
  Message shape;
  for (const auto& [symbol, extent] : extents)
    shape.message(1, extent > 0 ? Message().integer(1, static_cast<uint64_t>(extent)) : Message().text(2, symbol));
  const Message tensor = Message().integer(1, kFloat).message(2, shape);
  return Message().text(1, name).message(2, Message().message(1, tensor));
}

class Graph {
 public:
  explicit Graph(const std::vector<NamedArray>& weights) {
    for (const NamedArray& a : weights) by_name_[a.name] = &a;
  }

  bool has(const std::string& name) const { return by_name_.contains(name); }
  const Shape& shape(const std::string& name) const {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) throw Error(cat("ONNX export: the weights lack '{}'", name));
    return found->second->shape;
  }

  /// Appends a node with one output named after it.
  std::string node(const std::string& op, const std::string& name, const std::vector<std::string>& inputs,
                   const std::vector<Message>& attributes = {}) {
    Message m;
    for (const std::string& input : inputs) m.text(1, input);
    m.text(2, name).text(3, name).text(4, op);
    for (const Message& a : attributes) m.message(5, a);
    graph_.message(1, m);
    return name;
  }
  /// A weight's name, stored as an initializer.
  std::string weight(const std::string& name) {
    shape(name);  // it exists
    const NamedArray& a = *by_name_[name];
    CHECK(a.dtype == DType::f32, "ONNX export: '{}' is {}; weights must be f32", name, name_of(a.dtype));
    store(name, a.shape, a.data);
    return name;
  }

  std::string conv_norm(const std::string& x, const std::string& conv, const std::string& norm, int64_t stride) {
    const int64_t kernel = shape(conv + ".weight")[2], pad = kernel / 2;
    return batch_norm(node("Conv", conv, {x, weight(conv + ".weight")},
                           {attribute("kernel_shape", std::vector<int64_t>{kernel, kernel}),
                            attribute("pads", std::vector<int64_t>{pad, pad, pad, pad}),
                            attribute("strides", std::vector<int64_t>{stride, stride})}),
                      norm);
  }
  /// affine = false: the weights have no gamma and beta, which are 1 and 0.
  std::string batch_norm(const std::string& x, const std::string& name, bool affine = true) {
    const int64_t channels = shape(name + ".running_mean")[0];
    const std::string gamma = name + ".weight", beta = name + ".bias";
    return node(
        "BatchNormalization", name,
        {x, affine ? weight(gamma) : constant(gamma, channels, 1), affine ? weight(beta) : constant(beta, channels, 0),
         weight(name + ".running_mean"), weight(name + ".running_var")},
        {attribute("epsilon", 1e-5f)});
  }
  /// A linear layer, with its bias where it has one.
  std::string gemm(const std::string& x, const std::string& name) {
    std::vector<std::string> inputs{x, weight(name + ".weight")};
    if (has(name + ".bias")) inputs.push_back(weight(name + ".bias"));
    return node("Gemm", name, inputs, {attribute("transB", int64_t{1})});
  }
  /// MoCo v2's head fc.0, ReLU, fc.2, or one with batch norm behind its layers, whose numbers move by it; or fc alone.
  std::string head(std::string x, int64_t* dim) {
    std::string last = "fc";
    if (has("fc.0.weight")) {
      const bool norm = has("fc.1.running_mean");
      x = gemm(x, "fc.0");
      x = relu(norm ? batch_norm(x, "fc.1") : x);
      last = norm ? "fc.3" : "fc.2";
    }
    *dim = shape(last + ".weight")[0];
    x = gemm(x, last);
    return has("fc.4.running_mean") ? batch_norm(x, "fc.4", false) : x;
  }
  std::string relu(const std::string& x) { return node("Relu", x + ".relu", {x}); }

  /// One residual block; the stride stands on the 3x3 convolution (models/resnet.h).
  std::string block(const std::string& x, const std::string& name, int64_t stride) {
    const bool bottleneck = has(name + ".conv3.weight");
    const int last = bottleneck ? 3 : 2, strided = bottleneck ? 2 : 1;
    std::string y = x;
    for (int i = 1; i <= last; ++i) {
      y = conv_norm(y, cat("{}.conv{}", name, i), cat("{}.bn{}", name, i), i == strided ? stride : 1);
      if (i < last) y = relu(y);
    }
    std::string shortcut = x;
    if (has(name + ".downsample.0.weight"))
      shortcut = conv_norm(x, name + ".downsample.0", name + ".downsample.1", stride);
    return relu(node("Add", name + ".add", {y, shortcut}));
  }

  std::string finish(const Metadata& metadata, const Message& input, const std::vector<Message>& outputs) {
    graph_.text(2, "resnet");
    graph_.message(11, input);
    for (const Message& output : outputs) graph_.message(12, output);
    Message model;
    model.integer(1, kIrVersion).text(2, "csml").message(7, graph_);
    model.message(8, Message().text(1, "").integer(2, kOpset));
    for (const auto& [key, value] : metadata) model.message(14, property(key, value));
    return model.take();
  }

 private:
  std::string constant(const std::string& name, int64_t channels, float value) {
    const std::vector<float> values(static_cast<size_t>(channels), value);
    std::vector<std::byte> data(values.size() * sizeof(float));
    std::memcpy(data.data(), values.data(), data.size());
    store(name, {channels}, data);
    return name;
  }
  /// An initializer, once.
  void store(const std::string& name, const Shape& shape, const std::vector<std::byte>& data) {
    if (!stored_.insert(name).second) return;
    Message m;
    for (int d = 0; d < shape.rank(); ++d) m.integer(1, static_cast<uint64_t>(shape[d]));
    m.integer(2, kFloat).text(8, name);
    m.text(9, {reinterpret_cast<const char*>(data.data()), data.size()});
    graph_.message(5, m);
  }

  std::map<std::string, const NamedArray*> by_name_;
  std::set<std::string> stored_;
  Message graph_;
};

/// Reads a message's fields in order: calls take(field, number, bytes); `number` of varints, `bytes` of the others.
template <class F>
void each_field(std::string_view in, F&& take) {
  size_t at = 0;
  const auto need = [&](uint64_t bytes) {
    if (bytes > in.size() - at) throw Error("this is no ONNX model: a field ends after the file does");
  };
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      need(1);
      const auto byte = static_cast<unsigned char>(in[at++]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    throw Error("this is no ONNX model: a number is too long");
  };
  while (at < in.size()) {
    const uint64_t tag = varint();
    const int wire = static_cast<int>(tag & 7);
    uint64_t number = 0, length = 0;
    if (wire == kVarint) {
      number = varint();
    } else if (wire == kBytes) {
      length = varint();
    } else if (wire == kFixed32) {
      length = 4;
    } else {
      throw Error(cat("this is no ONNX model of csml: wire type {}", wire));
    }
    need(length);
    take(static_cast<int>(tag >> 3), number, in.substr(at, length));
    at += length;
  }
}

}  // namespace

std::string onnx_resnet(const std::vector<NamedArray>& weights, const Metadata& metadata) {
  Graph g(weights);
  const Shape& stem = g.shape("conv1.weight");
  const bool cifar_stem = stem[2] == 3;
  std::string x = g.relu(g.conv_norm("images", "conv1", "bn1", cifar_stem ? 1 : 2));
  if (!cifar_stem)
    x = g.node("MaxPool", "maxpool", {x},
               {attribute("kernel_shape", std::vector<int64_t>{3, 3}),
                attribute("pads", std::vector<int64_t>{1, 1, 1, 1}), attribute("strides", std::vector<int64_t>{2, 2})});
  int64_t channels = stem[0];
  for (int layer = 1; layer <= 4; ++layer)
    for (int b = 0; g.has(cat("layer{}.{}.conv1.weight", layer, b)); ++b) {
      const std::string name = cat("layer{}.{}", layer, b);
      x = g.block(x, name, layer > 1 && b == 0 ? 2 : 1);
      channels = g.shape(name + (g.has(name + ".conv3.weight") ? ".conv3.weight" : ".conv2.weight"))[0];
    }
  x = g.node("GlobalAveragePool", "avgpool", {x});
  x = g.node("Flatten", "features", {x}, {attribute("axis", int64_t{1})});
  std::vector<Message> outputs{value_info("features", {{"batch", 0}, {"", channels}})};
  if (g.has("fc.0.weight") || g.has("fc.weight")) {
    int64_t dim = 0;
    x = g.head(x, &dim);
    g.node("LpNormalization", "projection", {x}, {attribute("axis", int64_t{1}), attribute("p", int64_t{2})});
    outputs.push_back(value_info("projection", {{"batch", 0}, {"", dim}}));
  }
  return g.finish(metadata, value_info("images", {{"batch", 0}, {"", stem[1]}, {"height", 0}, {"width", 0}}), outputs);
}

std::map<std::string, NamedArray> onnx_initializers(std::string_view model) {
  std::map<std::string, NamedArray> arrays;
  each_field(model, [&](int field, uint64_t, std::string_view graph) {
    if (field != 7) return;
    each_field(graph, [&](int graph_field, uint64_t, std::string_view tensor) {
      if (graph_field != 5) return;
      NamedArray array;
      std::vector<int64_t> extents;
      each_field(tensor, [&](int part, uint64_t number, std::string_view bytes) {
        if (part == 1) extents.push_back(static_cast<int64_t>(number));
        if (part == 2 && number != kFloat) throw Error(cat("an ONNX initializer has data type {}, not f32", number));
        if (part == 8) array.name = bytes;
        if (part != 9) return;
        const auto* first = reinterpret_cast<const std::byte*>(bytes.data());
        array.data.assign(first, first + bytes.size());
      });
      if (extents.size() == 1) array.shape = {extents[0]};
      if (extents.size() == 2) array.shape = {extents[0], extents[1]};
      if (extents.size() == 4) array.shape = {extents[0], extents[1], extents[2], extents[3]};
      if (static_cast<size_t>(array.shape.size()) * sizeof(float) != array.data.size())
        throw Error(
            cat("ONNX initializer '{}' has {} bytes for shape {}", array.name, array.data.size(), array.shape.text()));
      const std::string name = array.name;
      arrays[name] = std::move(array);
    });
  });
  if (arrays.empty()) throw Error("this is no ONNX model of csml: it holds no initializer");
  return arrays;
}

}  // namespace csml
