// Reads points (x y weight height width, then the four corners' products) and prints the results of sampling.h.
#include "sampling.h"

#include <iostream>
#include <string>

int main() {
  std::string x, y, weight, product[4];
  int height, width;
  std::cout.precision(17);
  // As words: `>>` does not read nan and inf.
  while (std::cin >> x >> y >> weight >> height >> width >> product[0] >> product[1] >> product[2] >> product[3]) {
    const double w = std::stod(weight);
    double products[4];
    for (int c = 0; c < 4; ++c) products[c] = std::stod(product[c]);
    const double px = ddetr_ops::pixel_of_location(std::stod(x), width);
    const double py = ddetr_ops::pixel_of_location(std::stod(y), height);
    const auto cell = ddetr_ops::locate(px, py, height, width);
    double weights[4], masked[4];
    ddetr_ops::corner_weights(cell, w, weights);
    for (int c = 0; c < 4; ++c) masked[c] = cell.corners >> c & 1u ? products[c] : 0.0;
    const auto grads = ddetr_ops::point_grads(cell, w, masked);
    std::cout << cell.x << ' ' << cell.y << ' ' << cell.corners;
    for (double each : weights) std::cout << ' ' << each;
    std::cout << ' ' << grads.weight << ' ' << grads.x << ' ' << grads.y << '\n';
  }
}
