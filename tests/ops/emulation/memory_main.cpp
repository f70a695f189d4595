// Random problems of every size class through the emulated kernels, each tensor in a heap block of exactly its size:
// built with AddressSanitizer and UndefinedBehaviorSanitizer, any access outside of them is reported. Argument: the
// number of problems. Some locations lie far outside, and one problem in ten has a level that does not fit the tokens.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "cuda/params.h"

using namespace ddetr_ops;

namespace {

std::mt19937 random_bits(7);
int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }

float coordinate() {
  switch (pick(0, 40)) {
    case 0: return std::numeric_limits<float>::quiet_NaN();
    case 1: return -std::numeric_limits<float>::infinity();
    case 2: return 1e30f;
    case 3: return 1.0f;
    default: return std::uniform_real_distribution<float>(-0.3f, 1.3f)(random_bits);
  }
}

// A heap block of exactly `count` elements, aligned to 16 bytes or, for the kernels' narrow path, to one element.
template <typename E>
class Exact {
 public:
  Exact(size_t count, bool is_aligned)
      : shift_(is_aligned ? 0 : sizeof(E)), bytes_(new char[count * sizeof(E) + shift_]()) {}
  E* get() { return reinterpret_cast<E*>(bytes_.get() + shift_); }

 private:
  size_t shift_;
  std::unique_ptr<char[]> bytes_;
};

template <typename T>
void choose_sizes(Params<T>& p) {
  const int known[] = {16, 32, 64, 128};
  p.batch = pick(1, 2), p.queries = pick(1, 60), p.heads = pick(1, 3), p.levels = pick(1, 5);
  switch (pick(0, 2)) {
    case 0: p.channels = known[pick(0, 3)]; break;
    case 1: p.channels = 8 * pick(1, 6); break;
    default: p.channels = pick(1, 40);
  }
  p.reference_dim = 2 * pick(0, 2);
  p.points_in_acc = sizeof(T) > 2 || pick(0, 1);
  p.value_row = uint32_t(p.heads * p.channels * sizeof(T));
  p.grad_row = uint32_t(p.heads * p.channels * sizeof(acc_t<T>));
  if (pick(0, 1)) {
    p.num_points = pick(1, 6), p.points = p.levels * p.num_points;
    p.num_points_factor = 0xffffffffu / uint32_t(p.num_points);
    return;
  }
  for (int l = 0; l < p.levels; ++l) p.level_end[l] = p.points += pick(l == 0, 5);
}

// Locations or offsets, and weights or logits.
template <typename T>
void fill_points(const Params<T>& p, size_t count, char* locations, char* weights) {
  using A = acc_t<T>;
  for (size_t i = 0; i < 2 * count; ++i) {
    if (p.points_in_acc) {
      reinterpret_cast<A*>(locations)[i] = A(coordinate());
    } else {
      reinterpret_cast<uint16_t*>(locations)[i] = uint16_t(pick(0, 65535));
    }
  }
  for (size_t i = 0; p.points_in_acc && i < count; ++i) reinterpret_cast<A*>(weights)[i] = A(0.5);
}

template <typename T>
const char* one_problem() {
  using A = acc_t<T>;
  Params<T> p{};
  choose_sizes(p);
  std::vector<int64_t> shapes, starts;
  for (int l = 0; l < p.levels; ++l) {
    shapes.push_back(pick(0, 7)), shapes.push_back(pick(0, 7)), starts.push_back(p.tokens);
    p.tokens += int32_t(shapes[2 * size_t(l)] * shapes[2 * size_t(l) + 1]);
  }
  if (p.tokens == 0) return nullptr;
  if (pick(0, 9) == 0) shapes[0] = pick(0, 1) ? -3 : int64_t(1) << pick(2, 62);
  p.spatial_shapes = shapes.data(), p.level_start_index = starts.data();
  const bool is_aligned = pick(0, 3) != 0;
  const size_t rows = size_t(p.batch) * size_t(p.queries) * size_t(p.heads), count = rows * size_t(p.points);
  const size_t element = p.points_in_acc ? sizeof(A) : sizeof(T), keys = size_t(p.batch * p.heads * p.tokens);
  const size_t references = size_t(p.batch * p.queries * p.levels * p.reference_dim);
  Exact<T> value(keys * size_t(p.channels), is_aligned), grad_output(rows * size_t(p.channels), is_aligned);
  Exact<T> output(rows * size_t(p.channels), is_aligned);
  Exact<A> reference_points(references, true), grad_reference_points(references * size_t(p.heads), true);
  Exact<A> grad_value(keys * size_t(p.channels), true), corner_weights(4 * count, true), weight_grads(count, true);
  Exact<char> locations(count * 2 * element, true), weights(count * element, true);
  Exact<char> grad_locations(count * 2 * element, true), grad_weights(count * element, true);
  Exact<uint32_t> pairs[] = {{count, true}, {count, true}, {count, true}, {count, true}};
  Exact<uint32_t> begin(keys, true), end(keys, true);
  fill_points(p, count, locations.get(), weights.get());
  for (size_t i = 0; i < references; ++i) reference_points.get()[i] = A(coordinate());
  p.value = value.get(), p.locations = locations.get(), p.weights = weights.get(), p.output = output.get();
  if (p.reference_dim) p.reference_points = reference_points.get();
  if (const char* error = launch_forward(p, nullptr)) return error;

  p.grad_output = grad_output.get();
  if (pick(0, 3)) p.grad_value = grad_value.get();
  if (pick(0, 3)) p.grad_locations = grad_locations.get();
  if (pick(0, 3)) p.grad_weights = grad_weights.get();
  if (p.reference_dim && pick(0, 3)) p.grad_reference_points = grad_reference_points.get();
  if (needs_weight_grads(p) || pick(0, 3) == 0) p.weight_grads = weight_grads.get();
  if (p.grad_value && pick(0, 2) == 0) {
    p.sorted = {pairs[0].get(), pairs[1].get(), pairs[2].get(), pairs[3].get(), begin.get(), end.get(), nullptr, 0};
    p.corner_weights = corner_weights.get();
  }
  return launch_backward(p, nullptr);
}

}  // namespace

int main(int, char** arguments) {
  const int many = std::atoi(arguments[1]);
  for (int i = 0; i < many; ++i) {
    const char* error = i % 4 == 0 ? one_problem<double>() : i % 4 == 1 ? one_problem<Half>() : one_problem<float>();
    if (error) {
      std::printf("problem %d: %s\n", i, error);
      return 1;
    }
  }
  std::printf("%d problems\n", many);
}
