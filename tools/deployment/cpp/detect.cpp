// Detect objects in an image with an AOTInductor package, without Python.
//
//   detect MODEL.pt2 IMAGE [SCORE_THR [LIBRARY]]
//
// MODEL.pt2 is what `ddetr export --to aoti` wrote; LIBRARY is the op's _C.so, for packages that call it. Each detection
// is a line: class, score, x1 y1 x2 y2 in pixels of the image. Images are read by stb_image where it was there at
// compile time (Debian: libstb-dev), else binary PPM files only.
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <caffe2/serialize/inline_container.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <numeric>
#include <regex>
#include <stdexcept>
#if __has_include(<stb/stb_image.h>)
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>
#define HAS_STB 1
#endif

// The value of a key in the metadata's JSON, which has each of these keys once: as text, and as a list.
std::string value_of(const std::string& json, const std::string& key, const std::string& pattern) {
  std::smatch found;
  if (!std::regex_search(json, found, std::regex("\"" + key + "\": (" + pattern + ")")))
    throw std::runtime_error("the package's metadata has no usable " + key);
  return found[1];
}
std::vector<std::string> items(const std::string& text, const std::string& pattern) {
  const std::regex item(pattern);
  return {std::sregex_token_iterator(text.begin(), text.end(), item), std::sregex_token_iterator()};
}
const std::string NUMBER = "-?[0-9.e+-]+", STRING = "\"(?:[^\"\\\\]|\\\\.)*\"", LIST = "\\[[^\\[\\]]*\\]";
std::vector<double> numbers(const std::string& json, const std::string& key) {
  std::vector<double> values;
  for (const auto& text : items(value_of(json, key, LIST), NUMBER)) values.push_back(std::stod(text));
  return values;
}

at::Tensor read_image(const std::string& path) {  // (3, H, W) int, RGB
  int width = 0, height = 0;
  std::vector<unsigned char> pixels;
#ifdef HAS_STB
  int channels = 0;
  if (unsigned char* data = stbi_load(path.c_str(), &width, &height, &channels, 3)) {
    pixels.assign(data, data + 3l * width * height);
    stbi_image_free(data);
  }
#else
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int largest = 0;
  if (file >> magic >> width >> height >> largest && magic == "P6" && largest == 255 && file.get()) {
    pixels.resize(3l * width * height);
    if (!file.read(reinterpret_cast<char*>(pixels.data()), pixels.size())) pixels.clear();
  }
#endif
  if (pixels.empty()) throw std::runtime_error("image " + path + " cannot be read");
  return at::from_blob(pixels.data(), {height, width, 3}, at::kByte).permute({2, 0, 1}).to(at::kInt).contiguous();
}

struct Axis {  // the two neighbours of each new pixel, and their weights in 1/2048
  at::Tensor first, second, by_first, by_second;
};
Axis axis(int64_t from, int64_t to) {
  const auto place = at::arange(to, at::kDouble).add(0.5).mul(static_cast<double>(from) / to).sub(0.5).clamp(0, from - 1);
  const auto first = place.floor(), part = place.sub(first).to(at::kFloat).mul(2048);
  return {first.to(at::kLong), first.add(1).clamp_max(from - 1).to(at::kLong), part.neg().add(2048).round().to(at::kInt),
          part.round().to(at::kInt)};
}

// As the test pipeline's Resize: OpenCV's INTER_LINEAR for bytes, which cuts off fractions in these places.
at::Tensor resized(const at::Tensor& image, const std::string& json) {
  const auto scale = numbers(json, "scale");  // w, h; with keep_ratio the longest and the shortest side
  const double height = image.size(1), width = image.size(2);
  double new_height = scale.at(1), new_width = scale.at(0);
  if (value_of(json, "keep_ratio", "true|false") == "true") {
    const double factor = std::min(std::max(scale[0], scale[1]) / std::max(height, width),
                                   std::min(scale[0], scale[1]) / std::min(height, width));
    new_height = std::floor(height * factor + 0.5), new_width = std::floor(width * factor + 0.5);
  }
  if (new_height == height && new_width == width) return image;
  const Axis x = axis(image.size(2), new_width), y = axis(image.size(1), new_height);
  const auto columns = [&](const at::Tensor& at, const at::Tensor& by) { return image.index_select(2, at).mul(by); };
  const auto wide = columns(x.first, x.by_first).add(columns(x.second, x.by_second)).bitwise_right_shift(4);
  const auto rows = [&](const at::Tensor& at, const at::Tensor& by) {
    return wide.index_select(1, at).mul(by.unsqueeze(1)).bitwise_right_shift(16);
  };
  return rows(y.first, y.by_first).add(rows(y.second, y.by_second)).add(2).bitwise_right_shift(2);
}

int64_t padded(int64_t side, const std::string& json, const std::string& key) {
  const std::string fixed = value_of(json, key, NUMBER + "|null");
  if (fixed != "null" && side > std::stol(fixed)) throw std::runtime_error("the image exceeds the package's " + key);
  const int64_t divisor = std::lcm(std::stol(value_of(json, "pad_size_divisor", NUMBER)),
                                   std::stol(value_of(json, "multiple_of", NUMBER)));
  return fixed != "null" ? std::stol(fixed) : (side + divisor - 1) / divisor * divisor;
}

void detect(const std::string& model, const std::string& image_path, double score_thr) {
  const c10::InferenceMode guard;
  caffe2::serialize::PyTorchStreamReader archive(model);
  if (!archive.hasRecord("extra/ddetr")) throw std::runtime_error(model + " was not written by ddetr export");
  const auto [record, size] = archive.getRecord("extra/ddetr");
  const std::string json(static_cast<const char*>(record.get()), size);
  torch::inductor::AOTIModelPackageLoader loader(model);
  for (const auto& type : items(json, "\"type\": " + STRING))
    if (!std::regex_search(type, std::regex("\"(LoadImageFromFile|Resize|LoadAnnotations|PackDetInputs)\"")))
      throw std::runtime_error("this example cannot do a step of the test pipeline, " + type);

  const at::Tensor original = read_image(image_path);
  at::Tensor image = resized(original, json);  // (3, H, W)
  const int64_t height = image.size(1), width = image.size(2);
  const bool inside = value_of(json, "preprocessing", STRING) == "\"inside\"";
  if (inside || value_of(json, "bgr_to_rgb", "true|false") == "false") image = image.flip(0);  // to BGR
  const auto mean = numbers(json, "mean"), std_dev = numbers(json, "std");
  if (!inside && !mean.empty())
    image = image.to(at::kFloat)
                .sub(at::tensor(mean, at::kFloat).view({3, 1, 1}))
                .div(at::tensor(std_dev, at::kFloat).view({3, 1, 1}));
  const double fill = inside ? 0 : std::stod(value_of(json, "pad_value", NUMBER));
  const int64_t right = padded(width, json, "width") - width, below = padded(height, json, "height") - height;
  image = at::constant_pad_nd(image.to(inside ? at::kByte : at::kFloat), {0, right, 0, below}, fill).unsqueeze(0);

  const auto found = loader.run({image.contiguous(), at::tensor({height, width}, at::kLong).view({1, 2})});
  const auto boxes = found.at(0)[0].cpu(), scores = found.at(1)[0].cpu(), labels = found.at(2)[0].cpu();
  const auto names = items(value_of(json, "classes", "\\[(?:" + STRING + "|, )*\\]"), STRING);
  const double by_x = static_cast<double>(width) / original.size(2);  // from the original to the resized image
  const double by_y = static_cast<double>(height) / original.size(1);
  for (int64_t i = 0; i < scores.size(0) && scores[i].item<float>() >= score_thr; ++i) {
    const auto at = [&](int side) { return boxes[i][side].item<float>() / (side % 2 ? by_y : by_x); };
    std::printf("%s %.6f %.4f %.4f %.4f %.4f\n", names.at(labels[i].item<int64_t>()).c_str(),
                scores[i].item<float>(), at(0), at(1), at(2), at(3));
  }
}

int main(int argc, char** argv) {
  if (argc < 3 || argc > 5) return std::cerr << "detect MODEL.pt2 IMAGE [SCORE_THR [LIBRARY]]\n", 2;
  try {
    if (argc == 5 && !dlopen(argv[4], RTLD_NOW)) throw std::runtime_error(dlerror());
    detect(argv[1], argv[2], argc > 3 ? std::stod(argv[3]) : 0.3);
  } catch (const std::exception& error) {
    const std::string what = error.what();  // of PyTorch's errors the first line, before the stack
    return std::cerr << what.substr(0, what.find('\n')) << '\n', 2;
  }
}
