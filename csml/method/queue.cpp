#include "csml/method/queue.h"

#include <cmath>

#include "kernels/random.h"

namespace csml {

Queue::Queue(Device& device, int64_t rows, int64_t dim, uint64_t seed, uint32_t level) {
  CHECK(rows > 0, "method.queue = {}: a queue has at least one row", rows);
  std::vector<float> values(static_cast<size_t>(rows * dim));
  for (int64_t i = 0; i < rows; ++i) {
    Random random(seed, Purpose::queue, 0, static_cast<uint64_t>(i), level);
    float* row = values.data() + i * dim;
    double squares = 0;
    for (int64_t d = 0; d < dim; ++d) {
      row[d] = random.normal();
      squares += double{row[d]} * row[d];
    }
    const float inverse = static_cast<float>(1.0 / std::sqrt(squares));
    for (int64_t d = 0; d < dim; ++d) row[d] *= inverse;
  }
  rows_ = Tensor::from(device, {rows, dim}, values);
  cursor_ = Tensor::from(device, {1}, std::vector<int64_t>{0});
}

}  // namespace csml
