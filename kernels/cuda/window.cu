// Windows of feature maps: gather_window, its gradient, and the window that is most like a key. Maps, windows and keys
// are f32, bf16 or f16, all of one type in a call; gather_window moves elements of any type. Bound by memory.
#include "kernels/cuda/map.cuh"

namespace csml::cuda {

namespace {

/// Map [n,h,w,c], window [n,r,s,c] of it.
struct Window {
  int64_t n;
  int h, w, c, r, s;
};

/// The item-th pack of N of a window or map of `columns` pixels a row: image, row, and where in the row. One long
/// division: the rest fits 32 bits.
struct Place {
  int64_t image;
  int row, at;  // at: element of the row

  template <int N>
  DEVICE static Place of(int64_t item, int rows, int row_size) {
    const unsigned packs = static_cast<unsigned>(row_size / N), size = static_cast<unsigned>(rows) * packs;
    const int64_t image = item / size;
    const unsigned rest = static_cast<unsigned>(item - image * size);
    return {image, static_cast<int>(rest / packs), static_cast<int>(rest % packs) * N};
  }
};

struct Corner {
  int top, left;
  bool inside;
};

/// An image's corner; a window that leaves the map is reported and not touched.
DEVICE Corner corner_of(const Window& v, const int32_t* corner, int64_t image, Failure* failure) {
  const Corner at{corner[2 * image], corner[2 * image + 1], true};
  for (int axis = 0; axis < 2; ++axis) {
    const int value = axis == 0 ? at.top : at.left, limit = axis == 0 ? v.h - v.r + 1 : v.w - v.s + 1;
    if (value >= 0 && value < limit) continue;
    report(failure, Failure::window_corner, 2 * image + axis, value, limit);
    return {0, 0, false};
  }
  return at;
}

// ---- gather_window --------------------------------------------------------------------------------------------------

/// Bytes: reads the windows of x, writes y: 2 n_y b, the floor. No arithmetic.
template <int N, class T>
KERNEL void gather_window_kernel(Window v, const T* x, const int32_t* corner, T* y, Failure* failure) {
  const int64_t items = v.n * v.r * v.s * (v.c / N);
  for (int64_t item = grid_thread(); item < items; item += grid_threads()) {
    const Place p = Place::of<N>(item, v.r, v.s * v.c);
    const Corner k = corner_of(v, corner, p.image, failure);
    if (!k.inside) continue;
    const int64_t from = ((p.image * v.h + k.top + p.row) * v.w + k.left) * v.c + p.at;
    store_pack(y + item * N, load_pack<N>(x + from));
  }
}

/// dx = dy inside the windows, 0 outside. Bytes: reads dy, writes dx, the floor.
template <int N, class T>
KERNEL void scatter_window_kernel(Window v, const T* dy, const int32_t* corner, T* dx, Failure* failure) {
  const int64_t items = v.n * v.h * v.w * (v.c / N);
  for (int64_t item = grid_thread(); item < items; item += grid_threads()) {
    const Place p = Place::of<N>(item, v.h, v.w * v.c);
    const Corner k = corner_of(v, corner, p.image, failure);
    if (!k.inside) continue;
    const int row = p.row - k.top, at = p.at - k.left * v.c;
    Pack<T, N> d{};
    if (row >= 0 && row < v.r && at >= 0 && at < v.s * v.c)
      d = load_pack<N>(dy + (p.image * v.r + row) * v.s * v.c + at);
    store_pack(dx + item * N, d);
  }
}

/// dx += dy inside the windows. Bytes: reads dy and the windows of dx, writes those: 3 n_dy b, the floor. FLOPs: 1 an
/// element.
template <int N, class T>
KERNEL void add_window_kernel(Window v, const T* dy, const int32_t* corner, T* dx, Failure* failure) {
  const int64_t items = v.n * v.r * v.s * (v.c / N);
  for (int64_t item = grid_thread(); item < items; item += grid_threads()) {
    const Place p = Place::of<N>(item, v.r, v.s * v.c);
    const Corner k = corner_of(v, corner, p.image, failure);
    if (!k.inside) continue;
    T* to = dx + ((p.image * v.h + k.top + p.row) * v.w + k.left) * v.c + p.at;
    Pack<T, N> sum = load_pack<N>(to);
    const Pack<T, N> d = load_pack<N>(dy + item * N);
    for (int j = 0; j < N; ++j) sum[j] = T(float(sum[j]) + float(d[j]));
    store_pack(to, sum);
  }
}

// ---- best_window ----------------------------------------------------------------------------------------------------

/// Candidate corners along one axis: 0, stride, 2 stride ..., last.
struct Axis {
  int stride, last, size;  // size: of the window

  Axis(int step, int map, int window) : stride(min(step, max(map - window, 1))), last(map - window), size(window) {}
  CSML_HD int count() const { return (last + stride - 1) / stride + 1; }
  CSML_HD int corner(int i) const { return min(i * stride, last); }
  /// The candidates [first, end) whose window covers a position; they follow each other, as corners ascend.
  DEVICE int first(int at) const {
    const int over = at - size + 1;  // corner >= over
    return over <= 0 ? 0 : min((over + stride - 1) / stride, count() - 1);
  }
  DEVICE int end(int at) const { return at >= last ? count() : at / stride + 1; }  // corner <= at
};

constexpr int kCandidates = 8;  // a pixel is compared for at once

/// A warp to a pixel of a map: its cosine with the pixel of the key that lies over it in each candidate window.
/// cosines [images, candidates, r * s].
/// Bytes: reads x once; the key's pixels as often as candidates cover them, from memory once, then from the caches;
/// writes the cosines. FLOPs: 4 for each candidate, pixel of the window and channel: 256 maps of 14 x 14 x 1024 in
/// 16 bits with 9 windows of 8 x 8 are 136 MB and 0.6 GFLOP, so the bytes are the floor.
template <int N, class T>
KERNEL_BOUNDS(256, 2)
void window_cosine_kernel(Window v, Axis rows, Axis columns, const T* x, const T* key, float* cosines) {
  const int across = columns.count(), candidates = rows.count() * across;
  for (int64_t pixel = grid_thread() / kWarp; pixel < v.n * v.h * v.w; pixel += grid_threads() / kWarp) {
    const int64_t image = pixel / (v.h * v.w);
    const int at = static_cast<int>(pixel - image * v.h * v.w), row = at / v.w, column = at % v.w;
    const int row0 = rows.first(row), column0 = columns.first(column);
    const int high = max(rows.end(row) - row0, 0), wide = max(columns.end(column) - column0, 0), count = high * wide;
    const T *here = x + pixel * v.c, *keys = key + image * v.r * v.s * v.c;
    for (int done = 0; done < count; done += kCandidates) {
      int candidate[kCandidates], place[kCandidates];  // place: pixel of the window
      float dot[kCandidates] = {}, squares[kCandidates] = {}, own = 0;
      CSML_UNROLL
      for (int k = 0; k < kCandidates; ++k) {
        const int each = min(done + k, count - 1), i = row0 + each / wide, j = column0 + each % wide;
        candidate[k] = i * across + j;
        place[k] = (row - rows.corner(i)) * v.s + column - columns.corner(j);
      }
      for (int c = lane() * N; c < v.c; c += kWarp * N) {
        const Pack<T, N> a = load_pack<N>(here + c);
        for (int j = 0; j < N; ++j) own += float(a[j]) * float(a[j]);
        CSML_UNROLL
        for (int k = 0; k < kCandidates; ++k) {
          if (done + k >= count) break;
          const Pack<T, N> b = load_pack<N>(keys + int64_t{place[k]} * v.c + c);
          for (int j = 0; j < N; ++j) {
            dot[k] += float(a[j]) * float(b[j]);
            squares[k] += float(b[j]) * float(b[j]);
          }
        }
      }
      own = warp_sum(own);
      CSML_UNROLL
      for (int k = 0; k < kCandidates; ++k) {
        if (done + k >= count) break;
        const float product = warp_sum(dot[k]), other = warp_sum(squares[k]);
        // NaN stays NaN: such a window never wins.
        const float cosine = own == 0 || other == 0 ? 0.f : product / (std::sqrt(own) * std::sqrt(other));
        if (lane() == k) cosines[(image * candidates + candidate[k]) * v.r * v.s + place[k]] = cosine;
      }
    }
  }
}

constexpr int kBestThreads = 128;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// A block to an image. Windows are summed in one order, so equal windows have equal sums and the first wins. Bytes:
/// reads the cosines, which the caches still hold.
KERNEL void best_window_kernel(const float* cosines, int32_t* corner, Axis rows, Axis columns, int size) {
  SHARED(double, best_of, kBestThreads / kWarp);
  SHARED(int32_t, candidate_of, kBestThreads / kWarp);
  const int across = columns.count(), candidates = rows.count() * across;
  const float* from = cosines + int64_t{block().x} * candidates * size;
  double best = -kInfinity;
  int32_t found = 0;
  for (int k = warp(); k < candidates; k += kBestThreads / kWarp) {
    double sum = 0;
    for (int i = lane(); i < size; i += kWarp) sum += from[int64_t{k} * size + i];
    sum = warp_sum(sum);
    if (sum > best) best = sum, found = k;
  }
  if (lane() == 0) {
    best_of[warp()] = best;
    candidate_of[warp()] = found;
  }
  sync_block();
  if (thread() != 0) return;
  for (int i = 0; i < kBestThreads / kWarp; ++i) {
    const double other = best_of[i];
    const int32_t k = candidate_of[i];
    if (other > best || (other == best && k < found)) best = other, found = k;
  }
  corner[2 * block().x] = rows.corner(found / across);
  corner[2 * block().x + 1] = columns.corner(found % across);
}

// ---- host side ------------------------------------------------------------------------------------------------------

Window check_window(const char* op, const Shape& map, const Shape& window, const ConstView& corner) {
  CHECK(map.rank() == 4 && window.rank() == 4 && map[0] == window[0] && map[3] == window[3] && window[1] <= map[1] &&
            window[2] <= map[2],
        "{}: no window {} in map {}", op, window.text(), map.text());
  CHECK(corner.shape == (Shape{map[0], 2}) && corner.dtype == DType::i32, "{}: corner is {} {}, must be i32 [{}, 2]",
        op, name_of(corner.dtype), corner.shape.text(), map[0]);
  CHECK(map.row_size() <= std::numeric_limits<int32_t>::max(), "{}: a map of {} has {} elements, at most 2^31 - 1", op,
        map.text(), map.row_size());
  const auto extent = [](const Shape& s, int i) { return static_cast<int>(s[i]); };
  return {map[0], extent(map, 1), extent(map, 2), extent(map, 3), extent(window, 1), extent(window, 2)};
}

template <int N, class T>
void best_window_as(Context& context, const Window& v, const Backend::BestWindow& args) {
  const Axis rows(args.stride, v.h, v.r), columns(args.stride, v.w, v.s);
  const int64_t map = int64_t{v.h} * v.w * v.c, size = int64_t{v.r} * v.s, window = size * v.c;
  const int64_t cosines = int64_t{rows.count()} * columns.count() * size;
  // Many candidates of large windows: some images at a time, so that scratch stays at 64 MiB.
  constexpr int64_t kMost = int64_t{16} << 20;
  const int64_t at_once = min(v.n, max(int64_t{1}, kMost / max(cosines, int64_t{1})));
  float* scratch = context.scratch<float>(at_once * cosines);
  for (int64_t first = 0; first < v.n; first += at_once) {
    Window some = v;
    some.n = min(at_once, v.n - first);
    launch(context, {.name = "best_window cosines", .grid = grid_for(context, some.n * v.h * v.w * kWarp)},
           window_cosine_kernel<N, T>, some, rows, columns, args.x.as<T>() + first * map,
           args.key.as<T>() + first * window, scratch);
    launch(context, {.name = "best_window", .grid = {some.n}, .threads = kBestThreads}, best_window_kernel, scratch,
           args.corner.as<int32_t>() + 2 * first, rows, columns, static_cast<int>(size));
  }
}

}  // namespace

void gather_window(Context& context, const Backend::GatherWindow& args) {
  const Window v = check_window("gather_window", args.x.shape, args.y.shape, args.corner);
  CHECK(args.x.dtype == args.y.dtype, "gather_window: x is {}, y {}", name_of(args.x.dtype), name_of(args.y.dtype));
  const int32_t* corner = args.corner.as<int32_t>();
  with_size(size_of(args.x.dtype), [&]<class T>(T) {
    const T* x = static_cast<const T*>(args.x.data);
    T* y = static_cast<T*>(args.y.data);
    const bool wide = v.c % kPack<T> == 0 && aligned(x) && aligned(y);
    launch(context, {.name = "gather_window", .grid = grid_for(context, args.y.size() / (wide ? kPack<T> : 1))},
           wide ? gather_window_kernel<kPack<T>, T> : gather_window_kernel<1, T>, v, x, corner, y, context.failure());
  });
}

void gather_window_grad(Context& context, const Backend::GatherWindowGrad& args) {
  const Window v = check_window("gather_window_grad", args.dx.shape, args.dy.shape, args.corner);
  const int32_t* corner = args.corner.as<int32_t>();
  with_width(args.dx.dtype, v.c, {args.dy.data, args.dx.data}, [&]<class T, int N>(T, Width<N>) {
    const bool accumulate = args.write == Write::accumulate;
    const int64_t items = (accumulate ? args.dy.size() : args.dx.size()) / N;
    launch(context, {.name = "gather_window_grad", .grid = grid_for(context, items)},
           accumulate ? add_window_kernel<N, T> : scatter_window_kernel<N, T>, v, args.dy.as<T>(), corner,
           args.dx.as<T>(), context.failure());
  });
}

void best_window(Context& context, const Backend::BestWindow& args) {
  const Window v = check_window("best_window", args.x.shape, args.key.shape, args.corner);
  CHECK(args.stride >= 1, "best_window: stride {} must be at least 1", args.stride);
  if (v.n == 0) return;
  with_width(args.x.dtype, v.c, {args.x.data, args.key.data},
             [&]<class T, int N>(T, Width<N>) { best_window_as<N, T>(context, v, args); });
}

}  // namespace csml::cuda
