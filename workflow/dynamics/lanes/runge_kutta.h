// The classical fourth-order Runge-Kutta step of du/dt = f(u) for arrays of modes.
#pragma once

#include <vector>

#include "vectors.h"

template <class T> class RungeKutta {
 public:
  explicit RungeKutta(int modes) : stage_(modes), sum_(modes) {}

  // u one dt later. rate(i, v, out) calls out(m, f_m(v)) once for every mode m, after its last
  // look at other modes of v; i = 0 ... 3 is the stage.
  template <class Rate> void step(C<T>* u, T dt, Rate rate) {
    C<T>*v = stage_.data(), *sum = sum_.data();
    rate(0, u, [=](int m, C<T> k) { sum[m] = k, v[m] = u[m] + dt / 2 * k; });
    rate(1, v, [=](int m, C<T> k) { sum[m] = sum[m] + T(2) * k, v[m] = u[m] + dt / 2 * k; });
    rate(2, v, [=](int m, C<T> k) { sum[m] = sum[m] + T(2) * k, v[m] = u[m] + dt * k; });
    rate(3, v, [=](int m, C<T> k) { u[m] = u[m] + dt / 6 * (sum[m] + k); });
  }

 private:
  std::vector<C<T>> stage_, sum_;
};
