// Arithmetic test of the CPU kernels in a program without PyTorch, so that it can be cross-compiled and run under an
// emulator (ops/check_aarch64.sh). The truth is a scalar implementation in double; gradients of points are its central
// differences, which bilinear sampling makes exact inside a pixel cell.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "cpu/run.h"

using namespace ddetr_ops;

namespace {

std::mt19937 generator(1);
int failures = 0;

double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(generator); }

// ---- memory of any dtype, read and written as double ----
struct Float16 {
  int mantissa, bias;  // bits; the exponent's offset
};
constexpr Float16 kBf16{7, 127}, kFp16{10, 15};

double decode(uint16_t bits, Float16 format) {
  const int exponent_bits = 15 - format.mantissa, biased = bits >> format.mantissa & ((1 << exponent_bits) - 1);
  const double fraction = std::ldexp(double(bits & ((1 << format.mantissa) - 1)), -format.mantissa);
  const double sign = bits >> 15 ? -1 : 1;
  if (biased == (1 << exponent_bits) - 1) {
    return sign * (fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity());
  }
  return sign * (biased ? std::ldexp(1 + fraction, biased - format.bias) : std::ldexp(fraction, 1 - format.bias));
}

uint16_t encode(double x, Float16 format) {  // to nearest; no overflow
  const int special = ((1 << (15 - format.mantissa)) - 1) << format.mantissa, sign = std::signbit(x) ? 0x8000 : 0;
  if (!std::isfinite(x)) return uint16_t(sign | special | (std::isnan(x) ? 1 << (format.mantissa - 1) : 0));
  const int exponent = x == 0 ? 1 - format.bias : std::max(std::ilogb(x), 1 - format.bias);
  const double steps = std::nearbyint(std::ldexp(std::fabs(x), format.mantissa - exponent));
  return uint16_t(sign | (int(steps) + (exponent + format.bias - 1) * (1 << format.mantissa)));
}

struct Memory {
  DType dtype = DType::f32;
  std::vector<char> bytes;

  Memory() = default;
  Memory(size_t elements, DType dtype) : dtype(dtype), bytes(elements * size_t(size_of(dtype)), char(0x7f)) {}

  size_t size() const { return bytes.size() / size_t(size_of(dtype)); }
  Array array() { return {bytes.empty() ? nullptr : bytes.data(), dtype}; }
  double get(size_t i) const {
    const char* at = bytes.data() + i * size_t(size_of(dtype));
    if (dtype == DType::f64) return *reinterpret_cast<const double*>(at);
    if (dtype == DType::f32) return *reinterpret_cast<const float*>(at);
    return decode(*reinterpret_cast<const uint16_t*>(at), dtype == DType::bf16 ? kBf16 : kFp16);
  }
  double set(size_t i, double x) {  // what was stored
    char* at = bytes.data() + i * size_t(size_of(dtype));
    if (dtype == DType::f64) *reinterpret_cast<double*>(at) = x;
    if (dtype == DType::f32) *reinterpret_cast<float*>(at) = float(x);
    if (dtype == DType::bf16) *reinterpret_cast<uint16_t*>(at) = encode(x, kBf16);
    if (dtype == DType::f16) *reinterpret_cast<uint16_t*>(at) = encode(x, kFp16);
    return get(i);
  }
  void randomise(double low, double high) {
    for (size_t i = 0; i < size(); ++i) set(i, uniform(low, high));
  }
  std::vector<double> doubles() const {
    std::vector<double> all(size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = get(i);
    return all;
  }
};

// ---- the truth ----
struct Inputs {
  std::vector<double> value, locations, weights, references;
};

struct Problem {
  Shape shape;
  std::vector<Level> levels;
  int64_t dim = 0;  // 0: classic; fused: 2 or 4

  size_t item(int64_t b, int64_t q, int64_t m) const { return size_t((b * shape.queries + q) * shape.heads + m); }
  size_t row(int64_t b, int64_t t, int64_t m) const { return size_t((b * shape.tokens + t) * shape.heads + m); }

  // Pixel coordinate of a point along an axis: 0 = x, 1 = y.
  double pixel(const Inputs& in, int64_t b, int64_t q, int64_t m, const Level& level, int64_t k, int axis) const {
    const double location = in.locations[(item(b, q, m) * size_t(shape.points) + size_t(k)) * 2 + size_t(axis)];
    const double size = double(axis ? level.height : level.width);
    if (dim == 0) return location * size - 0.5;
    const size_t l = size_t(&level - levels.data());
    const double* reference = &in.references[(size_t(b * shape.queries + q) * levels.size() + l) * size_t(dim)];
    if (dim == 2) return (reference[axis] + location / size) * size - 0.5;
    return (reference[axis] + location / double(level.num_points) * reference[2 + axis] * 0.5) * size - 0.5;
  }

  // Calls f(token, coefficient) for the corners of all points of one query and head.
  void each_corner(const Inputs& in, int64_t b, int64_t q, int64_t m,
                   const std::function<void(int64_t, double)>& f) const {
    const double* weights = &in.weights[item(b, q, m) * size_t(shape.points)];
    double sum = dim ? 0 : 1;
    for (int64_t k = 0; dim && k < shape.points; ++k) sum += std::exp(weights[k]);
    for (const Level& level : levels) {
      for (int64_t k = level.first_point; k < level.first_point + level.num_points; ++k) {
        const double x = pixel(in, b, q, m, level, k, 0), y = pixel(in, b, q, m, level, k, 1);
        const double weight = dim ? std::exp(weights[k]) / sum : weights[k];
        for (int64_t row = 0; row < level.height; ++row) {
          for (int64_t column = 0; column < level.width; ++column) {
            const double tent = std::max(0.0, 1 - std::fabs(x - double(column))) *
                                std::max(0.0, 1 - std::fabs(y - double(row)));
            if (tent > 0) f(level.start + row * level.width + column, weight * tent);
          }
        }
      }
    }
  }

  std::vector<double> sample(const Inputs& in, int64_t b, int64_t q, int64_t m) const {
    std::vector<double> out(size_t(shape.channels));
    each_corner(in, b, q, m, [&](int64_t token, double coefficient) {
      for (size_t c = 0; c < out.size(); ++c) out[c] += coefficient * in.value[row(b, token, m) * out.size() + c];
    });
    return out;
  }

  // Sum of grad_output * output over the heads of one query.
  double loss(const Inputs& in, const std::vector<double>& grad_output, int64_t b, int64_t q) const {
    double sum = 0;
    for (int64_t m = 0; m < shape.heads; ++m) {
      const std::vector<double> out = sample(in, b, q, m);
      for (size_t c = 0; c < out.size(); ++c) sum += out[c] * grad_output[item(b, q, m) * out.size() + c];
    }
    return sum;
  }

  // Central difference by every element of in.*member, which belong to the queries in equal parts.
  std::vector<double> difference(Inputs in, std::vector<double> Inputs::*member,
                                 const std::vector<double>& grad) const {
    std::vector<double>& x = in.*member;
    std::vector<double> result(x.size());
    const size_t per_query = x.size() / size_t(shape.batch * shape.queries);
    for (size_t i = 0; i < x.size(); ++i) {
      const int64_t query = int64_t(i / per_query), b = query / shape.queries, q = query % shape.queries;
      const double kept = x[i], step = 1e-4;
      x[i] = kept + step;
      const double up = loss(in, grad, b, q);
      x[i] = kept - step;
      result[i] = (up - loss(in, grad, b, q)) / (2 * step);
      x[i] = kept;
    }
    return result;
  }
};

// ---- comparisons ----
void compare(const char* what, const Memory& actual, const std::vector<double>& expected, DType value) {
  const double relative[] = {1e-4, 1e-7, 1.2e-2, 2e-3};  // of the largest element
  double largest = 0, worst = 0;
  for (double x : expected) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double off = std::fabs(actual.get(i) - expected[i]);
    worst = std::isnan(off) ? std::numeric_limits<double>::infinity() : std::max(worst, off);
  }
  const bool same = worst <= relative[int(value)] * largest;
  if (!same) std::printf("FAILED %s, dtype %d: off by %g, largest %g\n", what, int(value), worst, largest), ++failures;
}

Problem make_problem(int64_t batch, int64_t heads, int64_t channels, int64_t queries, int64_t dim,
                     const std::vector<std::vector<int64_t>>& sizes) {
  Problem p;
  for (const auto& size : sizes) {  // height, width, points
    p.levels.push_back({p.shape.tokens, size[0], size[1], size[2], p.shape.points});
    p.shape.tokens += size[0] * size[1];
    p.shape.points += size[2];
  }
  p.shape.batch = batch, p.shape.heads = heads, p.shape.channels = channels, p.shape.queries = queries;
  p.shape.levels = int64_t(sizes.size());
  p.dim = dim;
  return p;
}

// Locations (or offsets) such that no point comes near a line between pixel centres, where the gradient jumps.
void place_points(const Problem& p, Inputs& in, Memory& locations) {
  const Shape& s = p.shape;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t q = 0; q < s.queries; ++q)
      for (int64_t m = 0; m < s.heads; ++m)
        for (const Level& level : p.levels)
          for (int64_t k = level.first_point; k < level.first_point + level.num_points; ++k)
            for (int axis = 0; axis < 2; ++axis) {
              const size_t at = (p.item(b, q, m) * size_t(s.points) + size_t(k)) * 2 + size_t(axis);
              double fraction = 0;
              do {
                in.locations[at] = locations.set(at, p.dim ? uniform(-3, 3) : uniform(-0.3, 1.3));
                const double pixel = p.pixel(in, b, q, m, level, k, axis);
                fraction = pixel - std::floor(pixel);
              } while (fraction < 0.05 || fraction > 0.95);
            }
}

void test_random(Problem p, DType dtype, DType points_dtype) {
  Shape s = p.shape;
  s.level = p.levels.data();
  const size_t items = p.item(s.batch, 0, 0), channels = size_t(s.channels), points = size_t(s.points);
  Memory value(p.row(s.batch, 0, 0) * channels, dtype), output(items * channels, dtype), grad_output = output;
  Memory locations(items * points * 2, points_dtype), weights(items * points, points_dtype);
  Memory references(size_t(s.batch * s.queries * s.levels * p.dim), points_dtype);
  value.randomise(-1, 1), weights.randomise(-1, 1), references.randomise(0.2, 0.9), grad_output.randomise(-1, 1);
  Inputs in{value.doubles(), std::vector<double>(items * points * 2), weights.doubles(), references.doubles()};
  place_points(p, in, locations);
  const Sampling sampling{locations.array(), weights.array(), references.array(), p.dim};

  run_forward(s, sampling, value.array(), output.bytes.data());
  std::vector<double> expected, expected_value(value.size());
  const std::vector<double> grad = grad_output.doubles();
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t q = 0; q < s.queries; ++q)
      for (int64_t m = 0; m < s.heads; ++m) {
        const std::vector<double> out = p.sample(in, b, q, m);
        expected.insert(expected.end(), out.begin(), out.end());
        p.each_corner(in, b, q, m, [&](int64_t token, double coefficient) {
          for (size_t c = 0; c < channels; ++c) {
            expected_value[p.row(b, token, m) * channels + c] += coefficient * grad[p.item(b, q, m) * channels + c];
          }
        });
      }
  compare("output", output, expected, dtype);

  Memory grad_value(value.size(), dtype), grad_locations(locations.size(), points_dtype);
  Memory grad_weights(weights.size(), points_dtype), grad_references(references.size(), points_dtype);
  const SamplingGrads grads{grad_locations.array(), grad_weights.array(), grad_references.array()};
  run_backward(s, sampling, value.array(), grad_output.bytes.data(), grad_value.array(), grads);
  compare("gradient of value", grad_value, expected_value, dtype);
  compare("gradient of the locations", grad_locations, p.difference(in, &Inputs::locations, grad), dtype);
  compare("gradient of the weights", grad_weights, p.difference(in, &Inputs::weights, grad), dtype);
  if (p.dim) {
    compare("gradient of the references", grad_references, p.difference(in, &Inputs::references, grad), dtype);
  }
}

// One point a query on a map of ones, 4 x 8, in pixel coordinates; what it gathers is known by hand.
void test_borders(DType dtype, bool surrounded_by_nan) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  struct Point {
    double x, y, gathered;
  };
  const std::vector<Point> on_border = {
      {-1, 1, 0},   {8, 1, 0},     {3, -1, 0},   {3, 4, 0},     {nan, 1, 0},     {3, nan, 0},    {inf, 1, 0},
      {3, -inf, 0}, {-9, 1, 0},    {3, 1e6, 0},  {-0.5, 1, 0.5}, {7.5, 1, 0.5},  {3, -0.5, 0.5}, {3, 3.5, 0.5},
      {7, 3, 1},    {0, 0, 1},     {2.25, 1.75, 1}, {7.25, 0, 0.75}, {-0.5, -0.5, 0.25}, {7.5, 3.5, 0.25}};
  // On the centre of the only pixel that is no NaN.
  const std::vector<Point> points = surrounded_by_nan ? std::vector<Point>{{3, 1, 1}} : on_border;
  const int64_t channels = 35;  // full vectors and a rest
  Problem p = make_problem(1, 1, channels, int64_t(points.size()), 0, {{4, 8, 1}});
  Shape s = p.shape;
  s.level = p.levels.data();
  Memory value(size_t(s.tokens * channels), dtype), output(points.size() * size_t(channels), dtype);
  Memory grad_output = output;
  Memory locations(points.size() * 2, DType::f32), weights(points.size(), DType::f32);
  if (dtype == DType::f64) locations = Memory(points.size() * 2, dtype), weights = Memory(points.size(), dtype);
  Memory grad_value = value, grad_locations = locations, grad_weights = weights;
  for (size_t i = 0; i < value.size(); ++i) {
    value.set(i, surrounded_by_nan && i / size_t(channels) != 1 * 8 + 3 ? (i % 2 ? nan : inf) : 1);
  }
  for (size_t i = 0; i < points.size(); ++i) {
    locations.set(2 * i, (points[i].x + 0.5) / 8), locations.set(2 * i + 1, (points[i].y + 0.5) / 4);
    weights.set(i, 1);
  }
  grad_output.randomise(1, 1);
  const Sampling sampling{locations.array(), weights.array(), {}, 0};
  run_forward(s, sampling, value.array(), output.bytes.data());
  run_backward(s, sampling, value.array(), grad_output.bytes.data(), grad_value.array(),
               {grad_locations.array(), grad_weights.array(), {}});
  double gathered = 0, scattered = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    bool same = grad_weights.get(i) == points[i].gathered * double(channels);
    for (size_t c = 0; c < size_t(channels); ++c) same &= output.get(i * size_t(channels) + c) == points[i].gathered;
    for (size_t axis = 0; axis < 2; ++axis) {
      const double grad = grad_locations.get(2 * i + axis);
      same &= points[i].gathered == 0 ? grad == 0 : std::isfinite(grad);
    }
    if (!same) std::printf("FAILED point (%g, %g), dtype %d\n", points[i].x, points[i].y, int(dtype)), ++failures;
    gathered += points[i].gathered * double(channels);
  }
  for (double each : grad_value.doubles()) scattered += each;
  const bool same = std::fabs(scattered - gathered) <= 0.02 * gathered;
  if (!same) std::printf("FAILED gradient of value at borders, dtype %d\n", int(dtype)), ++failures;
}

}  // namespace

int main() {
  int cases = 0;
  const std::vector<std::vector<int64_t>> even = {{8, 6, 2}, {4, 3, 2}}, uneven = {{5, 7, 3}, {1, 1, 2}, {2, 9, 5}};
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    const DType wide = acc_of(dtype);
    for (const int64_t threads : {1, 3}) {
      torch::stable::threads = threads;
      for (const int64_t dim : {0, 2, 4}) {
        for (const int64_t channels : {1, 3, 16, 32, 57}) {
          test_random(make_problem(2, 2, channels, 5, dim, even), dtype, wide);
          test_random(make_problem(1, 3, channels, 4, dim, uneven), dtype, wide);
          cases += 2;
        }
        test_random(make_problem(1, 2, 16, 70, dim, even), dtype, dtype);  // several tiles; packed rows
        cases += 1;
      }
      for (const bool nan : {false, true}) test_borders(dtype, nan), cases += 1;
    }
  }
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures != 0;
}
