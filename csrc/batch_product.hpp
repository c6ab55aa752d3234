// The product of a sparse matrix with a batch as layers have it: rows of features in, rows of features out.
//
// The loops of sparse_product.hpp want the batch along the registers. Here a tile of the batch is turned, multiplied
// and turned back while it lies in a near cache; for the gradient, which needs it at once, the batch is turned whole.
#pragma once

#include <algorithm>
#include <cstdint>

#include "sparse_product.hpp"
#include "turn.hpp"

namespace ellzero {

// Rows of the batch done together: so few that they stay in a core's second cache beside the weights; where their
// features are taken block by block, as many as those loops take at once.
template <class T> std::int64_t batch_tile(std::int64_t columns, bool blocked) {
    constexpr std::int64_t near = 400 << 10;
    std::int64_t bytes = blocked ? 256 : 512;
    while (!blocked && bytes > 128 && columns * bytes > near) bytes /= 2;
    return bytes / sizeof(T);
}

// out [batch, rows] = x [batch, columns] W' with scale and bias per row of W; w.stride is not read. As in products, no
// result depends on the threads: tiles and the order of sums follow from the shapes alone.
template <int R, class T, class Index, class Value>
void batch_product(SparseRows<T, Index, Value> w, const T *x, std::int64_t batch, T *out, int asked) {
    const std::int64_t rows = w.groups * R, columns = w.columns;
    const std::int64_t tile = std::min(batch_tile<T>(columns, w.cut), batch);
    const std::int64_t tiles = (batch + tile - 1) / tile;
    const int threads = threads_for((w.ptr[w.groups] - w.ptr[0] + w.groups) * R * batch, asked, 1 << 18);
    w.stride = tile;
    Room<Value, 1> sorted(w.order ? w.ptr[w.groups] : 0);
    if (w.order) {
        Value *to = sorted.data();
        in_parts(w.ptr[w.groups], threads, [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t k = first; k < last; ++k) to[k] = w.value[w.order[k]];
        });
        w.value = to;
    }
    auto one = [&](std::int64_t t, int inner) {
        const std::int64_t begin = t * tile, width = std::min(tile, batch - begin);
        Room<T, 2> turned(columns * tile);
        Room<T, 3> product(rows * tile);
        turn(x + begin * columns, width, columns, columns, turned.data(), tile, inner);
        const T *from = turned.data();
        T *to = product.data();
        by_entries(w.ptr, w.groups, inner, [&](std::int64_t first, std::int64_t last) {
            product_part<R>(w, from, width, to, tile, width, first, last);
        });
        turn(to, rows, width, tile, out + begin * rows, rows, inner);
    };
    if (tiles < threads) {
        for (std::int64_t t = 0; t < tiles; ++t) one(t, threads);
    } else {
        in_parts(tiles, threads, [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t t = first; t < last; ++t) one(t, 1);
        });
    }
}

// The gradient of the stored values for a batch of rows: grad [batch, rows], x [batch, columns].
template <int R, class T, class Index>
void batch_gradient(const SparseRows<T, Index, T> &w, const T *grad, const T *x, std::int64_t batch, T *gradient,
                    int asked) {
    const std::int64_t rows = w.groups * R;
    Room<T, 2> features(w.columns * batch);
    Room<T, 3> outputs(rows * batch);
    turn(x, batch, w.columns, w.columns, features.data(), batch, asked);
    turn(grad, batch, rows, rows, outputs.data(), batch, asked);
    values_gradient<R>(w, outputs.data(), features.data(), batch, gradient, asked);
}

}  // namespace ellzero
