// What both devices' operators check before a kernel sees a tensor.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ddetr_ops {

using torch::stable::Tensor;

template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << "ddetr_ops: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string sizes_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '(';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ')';
  return text.str();
}

// The shape must be exactly `expected`.
inline void require_sizes(const Tensor& tensor, const char* name, const char* letters,
                          const std::vector<int64_t>& expected) {
  bool same = tensor.dim() == int64_t(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i) same = tensor.size(int64_t(i)) == expected[i];
  if (same) return;
  std::ostringstream wanted;
  for (size_t i = 0; i < expected.size(); ++i) wanted << (i ? ", " : "") << expected[i];
  require(false, name, " must have the shape ", letters, " = (", wanted.str(), "), got ", sizes_of(tensor));
}

}  // namespace ddetr_ops
