// Grids of ny x nx points (ny = 1 in one dimension), and half-spectra of many members at once.
//
// A half-spectrum holds u_hat(kx, ky) for kx = 0 ... nx / 2, column by column: ky runs fastest. It
// is not normalised, as that of `rfft2`. Columns of arrays that rows are gathered from are one
// number longer than needed: with lengths that are powers of two a row would otherwise fall into a
// single set of the cache.
#pragma once

#include "fft.h"

template <class T> class Grid {
 public:
  const int nx, ny, pitch, columns;

  Grid(int nx, int ny)
      : nx(nx), ny(ny), pitch(ny + 1), columns(nx / 2 + 1), row(nx), along_x_(nx), along_y_(ny) {}

  // Fields that serve as one of a pair, on this grid and between the transforms.
  std::vector<C<T>> array() const { return std::vector<C<T>>(columns * pitch, C<T>{}); }

  template <int SIGN> void transform_column(C<T>* column) {
    if (ny > 1) along_y_.template transform<SIGN>(column, column);
  }

  template <int SIGN> void transform_columns(C<T>* a, int count) {
    for (int kx = 0; kx < count; ++kx) transform_column<SIGN>(a + kx * pitch);
  }

  // Row y of two real fields, as the complex row a + i b.
  void row_of(const C<T>* a, const C<T>* b, int count, C<T>* to) {
    join(a, b, pitch, count, nx, to);
    along_x_.template transform<1>(to, to);
  }

  // Twice the half-spectra of a row a + i b, which is spent.
  void spectra_of(C<T>* from, int count, C<T>* a, C<T>* b) {
    along_x_.template transform<-1>(from, from);
    split(from, nx, count, pitch, a, b);
  }

  // Real fields of a half-spectrum: field[y][x][lane]. The half-spectrum has no gaps.
  void observe(const C<T>* u, V<T>* field) {
    const T scale = T(1. / (double(nx) * ny));
    std::vector<C<T>> a = array(), none = array();
    for (int kx = 0; kx < columns; ++kx) {
      for (int ky = 0; ky < ny; ++ky) a[kx * pitch + ky] = scale * u[kx * ny + ky];
      transform_column<1>(&a[kx * pitch]);
    }
    for (int y = 0; y < ny; ++y) {
      row_of(&a[y], &none[y], columns, row.data());
      for (int x = 0; x < nx; ++x) field[y * nx + x] = row[x].re;
    }
  }

  std::vector<C<T>> row;  // room for one complex row

 private:
  Fft<T> along_x_, along_y_;
};
