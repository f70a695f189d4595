// Random problems of every size class through the emulated kernels, each tensor in a heap block of exactly its
// size: built with AddressSanitizer and UndefinedBehaviorSanitizer, a kernel that strays is reported.
// Argument: how many problems. Locations lie far outside at times, and a level in ten does not fit the tokens.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "problem.h"

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
const char* one_problem() {
  using A = wide_t<T>;
  Problem<T> p{};
  const bool known = pick(0, 2) == 0, is_aligned = pick(0, 3) != 0;
  p.batch = pick(1, 2), p.queries = pick(1, 60), p.heads = pick(1, 3);
  p.channels = known ? 32 : pick(0, 1) ? 8 * pick(1, 6) : pick(1, 40);
  p.levels = known ? 4 : pick(1, 5), p.points = known ? 4 : pick(1, 6);
  p.reference_size = 2 * pick(0, 2);
  p.points_are_wide = sizeof(T) > 2 || pick(0, 1);
  p.value_row = uint32_t(p.heads * p.channels * sizeof(T));
  p.grad_row = uint32_t(p.heads * p.channels * sizeof(A));
  std::vector<int64_t> shapes, starts;
  for (int l = 0; l < p.levels; ++l) {
    shapes.push_back(pick(0, 7)), shapes.push_back(pick(0, 7)), starts.push_back(p.tokens);
    p.tokens += int32_t(shapes[2 * size_t(l)] * shapes[2 * size_t(l) + 1]);
  }
  if (p.tokens == 0) return nullptr;
  if (pick(0, 9) == 0) shapes[0] = pick(0, 1) ? -3 : int64_t(1) << pick(2, 62);
  p.shapes = shapes.data(), p.starts = starts.data();
  const size_t items = size_t(p.batch) * size_t(p.queries) * size_t(p.heads), all = size_t(p.levels * p.points);
  const size_t fine = p.points_are_wide ? sizeof(A) : sizeof(T);
  Exact<T> value(size_t(p.batch * p.tokens * p.heads * p.channels), is_aligned);
  Exact<T> rows(items * size_t(p.channels), is_aligned), output(items * size_t(p.channels), is_aligned);
  Exact<A> reference(items * size_t(p.levels * 4), true), grad_reference(items * size_t(p.levels * 4), true);
  Exact<A> grad_value(size_t(p.batch * p.tokens * p.heads * p.channels), true), trail(items * all * 3, true);
  Exact<char> where(items * all * 2 * fine, true), how_much(items * all * fine, true);
  Exact<char> grad_where(items * all * 2 * fine, true), grad_how_much(items * all * fine, true);
  if (sizeof(T) > 2)
    for (size_t i = 0; i < items * all * 2; ++i) reinterpret_cast<A*>(where.get())[i] = A(coordinate());
  else if (p.points_are_wide)
    for (size_t i = 0; i < items * all * 2; ++i) reinterpret_cast<float*>(where.get())[i] = coordinate();
  else
    for (size_t i = 0; i < items * all * 2; ++i) reinterpret_cast<uint16_t*>(where.get())[i] = uint16_t(pick(0, 65535));
  for (size_t i = 0; i < items * size_t(p.levels * 4); ++i) reference.get()[i] = A(coordinate());
  if (fine > 2)
    for (size_t i = 0; i < items * all; ++i) reinterpret_cast<A*>(how_much.get())[i] = A(0.5);
  p.value = value.get(), p.where = where.get(), p.how_much = how_much.get(), p.output = output.get();
  if (p.reference_size) p.reference = reference.get();
  if (const char* error = launch_forward(p, nullptr)) return error;
  p.grad_output = rows.get(), p.grad_value = grad_value.get(), p.grad_where = grad_where.get();
  p.grad_how_much = grad_how_much.get(), p.grad_reference = grad_reference.get();
  if (pick(0, 2) == 0) p.trail = trail.get();
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
