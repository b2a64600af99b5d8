// Two-dimensional Navier-Stokes turbulence forced by waves with hidden random phases:
//
//     dzeta/dt = L zeta - u . grad zeta + forcing(phases),    d phase = 2^(1/2) dW
//
// The state is the half-spectrum of the vorticity and the phases of the forced modes.
#pragma once

#include <complex>

#include "grid.h"
#include "normals.h"
#include "runge_kutta.h"

// A forced mode of the half-spectrum. A real field has (c_k + conj c_-k) / 2 there.
struct Forced {
  int32_t mode, phase, opposite;  // kx ny + ky; numbers of the phases of k and -k
};

template <class T> class NavierStokes {
 public:
  // linear: L. inverse: of the Laplacian. dx, dy: wavenumbers of derivatives, 0 at Nyquist.
  // truncation: largest wavenumber of the dealiased nonlinear term, or 0 for the skew form.
  NavierStokes(int n, double dt, int truncation, const Shared<T>* linear, const T* inverse,
               const T* dx, const T* dy, int phases, int forced, const Forced* list, double amplitude,
               double mean_forcing)
      : grid_(n, n),
        modes_(grid_.columns * n),
        dealiased_(truncation > 0),
        count_(truncation ? truncation + 1 : grid_.columns),
        low_(truncation ? truncation + 1 : n),
        high_(truncation),
        phases_(phases),
        dt_(T(dt)),
        amplitude_(T(amplitude)),
        mean_forcing_(T(mean_forcing)),
        linear_(linear, linear + modes_),
        inverse_(inverse, inverse + modes_),
        dx_(dx, dx + grid_.columns),
        dy_(dy, dy + n),
        forced_(list, list + forced),
        normals_((2 * phases + 3) / 4 * 4),
        waves_(phases),
        column_(n),
        runge_kutta_(modes_) {
    for (std::vector<C<T>>& f : forcing_) f.resize(forced);
    for (int i = 0; i < (truncation ? 2 : 5); ++i) fields_[i] = grid_.array();
    if (!truncation)
      for (std::vector<C<T>>& row : rows_) row.resize(n);
    for (int kx = 0; kx < grid_.columns; ++kx)
      for (int ky = kx < count_ ? low_ : 0; ky < (kx < count_ ? n - high_ : n); ++ky) {
        const int m = kx * n + ky;
        std::complex<double> z(linear[m].re * dt, linear[m].im * dt);
        z = 1. + z * (1. + z / 2. * (1. + z / 3. * (1. + z / 4.)));
        alone_.push_back({m, {T(z.real()), T(z.imag())}});
      }
    first_of_column_.assign(grid_.columns + 1, 0);
    for (const Forced& f : forced_) ++first_of_column_[f.mode / n + 1];
    for (int kx = 0; kx < grid_.columns; ++kx) first_of_column_[kx + 1] += first_of_column_[kx];
  }

  // The phases move by half a step before stages 1 and 3.
  void advance(C<T>* zeta, V<T>* phases, Key key, const uint32_t* members, uint32_t first,
               uint32_t steps) {
    force(phases, forcing_[0]);
    for (uint32_t step = first; step < first + steps; ++step) {
      for (int i = 0; i < 2 * phases_; i += 4)
        four_normals<T>(key, members, step, i / 4, &normals_[i]);
      for (int half = 0; half < 2; ++half) {
        const T root = std::sqrt(dt_);
        for (int i = 0; i < phases_; ++i) phases[i] += root * normals_[half * phases_ + i];
        force(phases, forcing_[1 + half]);
      }
      runge_kutta_.step(zeta, dt_, [this](int stage, const C<T>* v, auto out) {
        rate(v, forcing_[(stage + 1) / 2], out);
      });
      for (const Alone& mode : alone_) zeta[mode.m] = mode.factor * zeta[mode.m];
      std::swap(forcing_[0], forcing_[2]);
    }
  }

  void observe(const C<T>* zeta, V<T>* field) { grid_.observe(zeta, field); }

 private:
  void force(const V<T>* phases, std::vector<C<T>>& forcing) {
    for (int i = 0; i < phases_; ++i) waves_[i] = on_circle<T>(phases[i]);
    for (size_t i = 0; i < forced_.size(); ++i) {
      const Forced& f = forced_[i];
      C<T> plus = waves_[f.phase], minus = waves_[f.opposite];
      forcing[i] = amplitude_ / 2 * C<T>{plus.re + minus.re, plus.im - minus.im};
      if (f.mode == 0) forcing[i] = mean_forcing_ * forcing[i];
    }
  }

  // Of the modes that interact.
  template <class Out> void rate(const C<T>* zeta, const std::vector<C<T>>& forcing, Out out) {
    const int n = grid_.nx;
    if (dealiased_) square(zeta); else skew(zeta);
    for (int kx = 0; kx < count_; ++kx) {
      if (dealiased_) curl_of_square(kx); else curl_of_skew(kx);
      for (int i = first_of_column_[kx]; i < first_of_column_[kx + 1]; ++i) {
        C<T>& here = column_[forced_[i].mode - kx * n];
        here = here + forcing[i];
      }
      each_row([&](int ky) {
        const int m = kx * n + ky;
        out(m, linear_[m] * zeta[m] + column_[ky]);
      });
    }
  }

  // Wavenumbers ky of the modes that interact.
  template <class F> void each_row(F f) const {
    for (int ky = 0; ky < low_; ++ky) f(ky);
    for (int ky = grid_.ny - high_; ky < grid_.ny; ++ky) f(ky);
  }

  // Dealiased: with u^2 - v^2 and uv on the grid, the curl of the divergence of the momentum flux
  //     -u . grad zeta = (kx^2 - ky^2) (uv)^ - kx ky (u^2 - v^2)^
  // (Basdevant 1983). Both are the square of u + iv, which is how a row holds the two.

  // (u^2 - v^2)^ and (2 uv)^ of the truncated flow, into fields 0 and 1.
  void square(const C<T>* zeta) {
    const int n = grid_.nx, count = count_, pitch = grid_.pitch;
    const T scale = T(1. / (double(n) * n));
    C<T>*u = fields_[0].data(), *v = fields_[1].data();
    for (int kx = 0; kx < count; ++kx) {
      C<T>*u_column = u + kx * pitch, *v_column = v + kx * pitch;
      for (int ky = low_; ky < n - high_; ++ky) u_column[ky] = v_column[ky] = C<T>{};
      each_row([&](int ky) {
        C<T> ipsi = scale * inverse_[kx * n + ky] * times_i<1>(zeta[kx * n + ky]);
        u_column[ky] = -dy_[ky] * ipsi;
        v_column[ky] = dx_[kx] * ipsi;
      });
    }
    grid_.template transform_columns<1>(u, count);
    grid_.template transform_columns<1>(v, count);
    C<T>* row = grid_.row.data();
    for (int y = 0; y < n; ++y) {
      grid_.row_of(u + y, v + y, count, row);
      for (int x = 0; x < n; ++x) {
        V<T> p = row[x].re, q = row[x].im;
        row[x] = {p * p - q * q, p * q + p * q};
      }
      grid_.spectra_of(row, count, u + y, v + y);
    }
    grid_.template transform_columns<-1>(u, count);
    grid_.template transform_columns<-1>(v, count);
  }

  void curl_of_square(int kx) {
    const C<T>*square = &fields_[0][kx * grid_.pitch], *product = &fields_[1][kx * grid_.pitch];
    const T x = dx_[kx];
    each_row([&](int ky) {
      const T y = dy_[ky];
      column_[ky] = (x * x - y * y) / 4 * product[ky] - x * y / 2 * square[ky];
    });
  }

  // Skew form, all modes, not dealiased: -(u . grad zeta + div (u zeta)) / 2.

  // (u . grad zeta)^, (u zeta)^ and (v zeta)^ into fields 4, 0 and 1.
  void skew(const C<T>* zeta) {
    const int n = grid_.nx, count = grid_.columns, pitch = grid_.pitch;
    const T scale = T(1. / (double(n) * n));
    for (int kx = 0; kx < count; ++kx)
      for (int ky = 0; ky < n; ++ky) {
        const int m = kx * n + ky, w = kx * pitch + ky;
        C<T> z = scale * zeta[m], iz = times_i<1>(z);
        fields_[0][w] = -dy_[ky] * inverse_[m] * iz;  // u
        fields_[1][w] = dx_[kx] * inverse_[m] * iz;   // v
        fields_[2][w] = dx_[kx] * iz;                 // dzeta/dx
        fields_[3][w] = dy_[ky] * iz;                 // dzeta/dy
        fields_[4][w] = z;
      }
    for (std::vector<C<T>>& f : fields_) grid_.template transform_columns<1>(f.data(), count);
    C<T>* vorticity = grid_.row.data();  // of rows y and y + 1
    C<T>*flow = rows_[0].data(), *gradient = rows_[1].data(), *work = rows_[2].data();
    for (int y = 0; y < n; y += 2) {
      grid_.row_of(&fields_[4][y], &fields_[4][y + 1], count, vorticity);
      for (int odd = 0; odd < 2; ++odd) {
        C<T>*u = &fields_[0][y + odd], *v = &fields_[1][y + odd];
        grid_.row_of(u, v, count, flow);
        grid_.row_of(&fields_[2][y + odd], &fields_[3][y + odd], count, gradient);
        for (int x = 0; x < n; ++x) {
          V<T> here = odd ? vorticity[x].im : vorticity[x].re;
          V<T> along = flow[x].re * gradient[x].re + flow[x].im * gradient[x].im;
          (odd ? work[x].im : work[x].re) = along;
          flow[x] = {flow[x].re * here, flow[x].im * here};
        }
        grid_.spectra_of(flow, count, u, v);
      }
      grid_.spectra_of(work, count, &fields_[4][y], &fields_[4][y + 1]);
    }
    for (int i : {0, 1, 4}) grid_.template transform_columns<-1>(fields_[i].data(), count);
  }

  void curl_of_skew(int kx) {
    const int w = kx * grid_.pitch;
    for (int ky = 0; ky < grid_.ny; ++ky) {
      C<T> flux = dx_[kx] * fields_[0][w + ky] + dy_[ky] * fields_[1][w + ky];
      column_[ky] = T(-0.25) * (fields_[4][w + ky] + times_i<1>(flux));
    }
  }

  Grid<T> grid_;
  const int modes_;
  const bool dealiased_;
  const int count_, low_, high_;  // columns, and rows at either end, of the modes that interact
  const int phases_;
  const T dt_, amplitude_, mean_forcing_;
  std::vector<Shared<T>> linear_;
  std::vector<T> inverse_, dx_, dy_;
  std::vector<Forced> forced_;  // column by column
  std::vector<int> first_of_column_;
  // The other modes only decay: their Runge-Kutta step is a factor.
  struct Alone {
    int m;
    Shared<T> factor;
  };
  std::vector<Alone> alone_;
  std::vector<V<T>> normals_;
  std::vector<C<T>> waves_, column_, forcing_[3], fields_[5], rows_[3];
  RungeKutta<T> runge_kutta_;
};
