// Checks that raise a RuntimeError in Python. The message is built only where a check fails.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace ddetr_ops {

using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "ddetr_ops: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

#define DDETR_CHECK(condition, ...)                          \
  do {                                                       \
    if (!(condition)) [[unlikely]] ddetr_ops::fail(__VA_ARGS__); \
  } while (false)

inline std::string shape_text(std::initializer_list<int64_t> sizes) {
  std::ostringstream text;
  for (const int64_t size : sizes) text << (text.tellp() > 0 ? ", " : "(") << size;
  text << (sizes.size() == 0 ? "()" : ")");
  return text.str();
}

inline std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << '(';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ')';
  return text.str();
}

inline bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  if (tensor.dim() != int64_t(sizes.size())) return false;
  int64_t dim = 0;
  for (const int64_t size : sizes) {
    if (tensor.size(dim++) != size) return false;
  }
  return true;
}

// `dims` names the sizes: "(B, Q, M, L, P)".
inline void check_shape(const Tensor& tensor, const char* name, const char* dims,
                        std::initializer_list<int64_t> sizes) {
  DDETR_CHECK(has_shape(tensor, sizes), name, " must have the shape ", dims, " = ", shape_text(sizes), ", got ",
              shape_text(tensor));
}

}  // namespace ddetr_ops
