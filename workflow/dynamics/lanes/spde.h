// SPDEs for one field with additive noise coloured in space:
//
//     du/dt = L u + F (u - u^3) + noise
//
// L and F act on modes; the bistable term is there or not, and is taken on the grid itself or,
// free of aliasing, on one of twice as many points (Orszag 1971: products of three modes below
// Nyquist that fold back fall above it).
#pragma once

#include <memory>

#include "grid.h"
#include "normals.h"
#include "runge_kutta.h"

enum class Scheme { strang, noise_last, transition };

template <class T> class Spde {
 public:
  // linear: L, or exp(L dt) for `transition`. noise: what multiplies the transform of the normals.
  // reaction: F, or null. refine: points of the fine grid per point, 1 or 2.
  Spde(int nx, int ny, double dt, Scheme scheme, int refine, const Shared<T>* linear,
       const T* noise, const T* reaction)
      : grid_(nx, ny),
        modes_(grid_.columns * ny),
        dt_(T(dt)),
        scheme_(scheme),
        linear_(linear, linear + modes_),
        noise_(noise, noise + modes_),
        drawn_{grid_.array(), grid_.array()},
        row_normals_(2 * nx),
        runge_kutta_(modes_) {
    for (T& amplitude : noise_) amplitude /= 2;  // `split` doubles
    if (!reaction) return;
    bool padded = refine == 2;
    fine_ = std::make_unique<Grid<T>>(refine * nx, ny > 1 ? refine * ny : 1);
    kept_columns_ = padded ? nx / 2 : nx / 2 + 1;
    low_rows_ = ny > 1 ? ny / 2 : 1;
    high_rows_ = ny > 1 ? (padded ? ny / 2 - 1 : ny / 2) : 0;
    work_ = fine_->array();
    reaction_.assign(reaction, reaction + modes_);
    double refined = double(fine_->nx) / nx * fine_->ny / ny;
    for (T& factor : reaction_) factor = T(factor / (2 * refined));
  }

  void advance(C<T>* u, Key key, const uint32_t* members, uint32_t first, uint32_t steps) {
    for (uint32_t step = first; step < first + steps; ++step) {
      draw(key, members, step);
      if (scheme_ == Scheme::transition) {
        for (int m = 0; m < modes_; ++m) u[m] = linear_[m] * u[m];
        add_noise(u, 0);
        continue;
      }
      if (scheme_ == Scheme::strang) add_noise(u, 0);
      runge_kutta_.step(u, dt_, [this](int, const C<T>* v, auto out) { rate(v, out); });
      add_noise(u, scheme_ == Scheme::strang ? 1 : 0);
    }
  }

  void observe(const C<T>* u, V<T>* field) { grid_.observe(u, field); }

 private:
  // L v + F (v - v^3)
  template <class Out> void rate(const C<T>* v, Out out) {
    const int ny = grid_.ny;
    if (fine_) react(v);
    for (int kx = 0; kx < grid_.columns; ++kx)
      for (int ky = 0; ky < ny; ++ky) {
        const int m = kx * ny + ky;
        C<T> rate = linear_[m] * v[m];
        const int row = ky < low_rows_ ? ky : fine_row(ky);
        if (kx < kept_columns_ && row >= 0)
          rate = rate + reaction_[m] * work_[kx * fine_->pitch + row];
        out(m, rate);
      }
  }

  // Row of the fine grid that holds wavenumber ky < 0 of the coarse one; -1 for Nyquist, if dropped.
  int fine_row(int ky) const {
    const int below = grid_.ny - ky;
    return below <= high_rows_ ? fine_->ny - below : -1;
  }

  // Transform of v - v^3 on the fine grid, into `work_`.
  void react(const C<T>* v) {
    const T scale = T(1. / (double(grid_.nx) * grid_.ny));
    const int ny = grid_.ny, fine_ny = fine_->ny, pitch = fine_->pitch;
    for (int kx = 0; kx < kept_columns_; ++kx) {
      C<T>* column = &work_[kx * pitch];
      for (int ky = 0; ky < low_rows_; ++ky) column[ky] = scale * v[kx * ny + ky];
      for (int ky = low_rows_; ky < fine_ny - high_rows_; ++ky) column[ky] = C<T>{};
      for (int ky = 1; ky <= high_rows_; ++ky)
        column[fine_ny - ky] = scale * v[kx * ny + ny - ky];
      if (fine_ny == 1) column[1] = C<T>{};
      fine_->template transform_column<1>(column);
    }
    C<T>* row = fine_->row.data();
    for (int y = 0; y < fine_ny; y += 2) {  // the odd row is the spare one if there is one row
      C<T>*a = &work_[y], *b = &work_[y + 1];
      fine_->row_of(a, b, kept_columns_, row);
      for (int x = 0; x < fine_->nx; ++x) {
        V<T> p = row[x].re, q = row[x].im;
        row[x] = {p - p * p * p, q - q * q * q};
      }
      fine_->spectra_of(row, kept_columns_, a, b);
    }
    fine_->template transform_columns<-1>(work_.data(), kept_columns_);
  }

  // Transforms of the normals of a step, into `drawn_`. Two rows share a complex transform: the
  // same of both sets, or neighbours where there is one set.
  void draw(Key key, const uint32_t* members, uint32_t step) {
    const int nx = grid_.nx, ny = grid_.ny;
    const bool two_sets = scheme_ == Scheme::strang;
    C<T>* row = grid_.row.data();
    for (int y = 0; y < ny; y += two_sets ? 1 : 2) {
      draw_row(key, members, step, y, &row_normals_[0]);
      if (two_sets || ny > 1) draw_row(key, members, step, two_sets ? ny + y : y + 1, &row_normals_[nx]);
      for (int x = 0; x < nx; ++x) row[x] = {row_normals_[x], row_normals_[nx + x]};
      C<T>* second = two_sets ? &drawn_[1][y] : &drawn_[0][y + 1];
      grid_.spectra_of(row, grid_.columns, &drawn_[0][y], second);
    }
    for (int set = 0; set < (two_sets ? 2 : 1); ++set)
      grid_.template transform_columns<-1>(drawn_[set].data(), grid_.columns);
  }

  // Row of normals, counted through the sets.
  void draw_row(Key key, const uint32_t* members, uint32_t step, int y, V<T>* to) {
    for (int x = 0; x < grid_.nx; x += 4)
      four_normals<T>(key, members, step, (y * grid_.nx + x) / 4, to + x);
  }

  void add_noise(C<T>* u, int set) {
    for (int kx = 0; kx < grid_.columns; ++kx) {
      const C<T>* drawn = &drawn_[set][kx * grid_.pitch];
      for (int ky = 0; ky < grid_.ny; ++ky) {
        const int m = kx * grid_.ny + ky;
        u[m] = u[m] + noise_[m] * drawn[ky];
      }
    }
  }

  Grid<T> grid_;
  const int modes_;
  const T dt_;
  const Scheme scheme_;
  std::vector<Shared<T>> linear_;
  std::vector<T> noise_, reaction_;
  std::vector<C<T>> drawn_[2];
  std::vector<V<T>> row_normals_;
  RungeKutta<T> runge_kutta_;
  std::unique_ptr<Grid<T>> fine_;
  int kept_columns_ = 0, low_rows_ = 1, high_rows_ = 0;
  std::vector<C<T>> work_;
};
