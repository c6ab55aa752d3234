// Exact row top-k in about one pass over memory. Twin of kernels/reference.py::top_k.
//
// The row is cut into groups of 8 entries (one lane of a block of 8 vectors). The k-th largest maximum of at least k
// disjoint groups is a lower bound of the k-th largest entry: k different entries reach it. Only groups whose maximum
// exceeds the bound are read again, and there are few. Fewer than k groups exceed it, so with 4k coarse groups the
// short list holds at most a quarter of the row, whatever its order. If fewer than k entries exceed the bound, the
// k-th largest *is* the bound, and the rest are its ties, taken from the left; long runs of ties (zeros after a ReLU)
// therefore cost nothing extra. NaN enters no maximum and exceeds nothing: it is only used when numbers run out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "lanes.hpp"

namespace ellzero {

template <class T> struct Entry {
    T value;
    std::int64_t index;
};

template <class T> inline bool comes_first(const Entry<T> &a, const Entry<T> &b) {
    return a.value > b.value || (a.value == b.value && a.index < b.index);
}

template <class T> class RowTopK {
  public:
    static constexpr int lanes = lane_count<T>, depth = 8;
    static constexpr std::int64_t block = lanes * depth;
    static constexpr T lowest = -std::numeric_limits<T>::infinity();

    RowTopK(std::int64_t n, std::int64_t k) : n(n), k(k), blocks(n / block) {
        grouped = blocks * lanes >= 2 * k;
        if (grouped) maxima.resize(blocks * lanes);
    }

    // The k largest of row[0..n), 1 <= k <= n: values descending, ties by lowest index, NaN last.
    void operator()(const T *row, T *values, std::int64_t *indices) {
        above.clear();
        T bound = grouped ? group_bound(row) : exact_bound(row);
        collect(row, bound);
        std::int64_t count = above.size(), kept = std::min(count, k);
        if (count > k) std::nth_element(above.begin(), above.begin() + (k - 1), above.end(), comes_first<T>);
        std::sort(above.begin(), above.begin() + kept, comes_first<T>);
        for (std::int64_t i = 0; i < kept; ++i) {
            values[i] = above[i].value;
            indices[i] = above[i].index;
        }
        fill(row, kept, values, indices, [bound](T x) { return x == bound; });
        fill(row, kept, values, indices, [](T x) { return x != x; });
    }

  private:
    std::int64_t n, k, blocks;
    bool grouped;
    std::vector<T> maxima, coarse;
    std::vector<Entry<T>> above;

    T group_bound(const T *row) {
        for (std::int64_t b = 0; b < blocks; ++b)
            lane_maxima(row + b * block, depth, lowest, maxima.data() + b * lanes);
        std::int64_t step = std::clamp<std::int64_t>(blocks * lanes / (4 * k), 1, blocks), groups = blocks / step;
        while (groups * lanes < k) groups = blocks / --step;  // lanes are whole, so rounding may leave too few
        coarse.resize(groups * lanes);
        for (std::int64_t g = 0; g < groups; ++g)
            lane_maxima(maxima.data() + g * step * lanes, static_cast<int>(step), lowest, coarse.data() + g * lanes);
        return kth_largest(coarse);
    }

    T exact_bound(const T *row) {
        coarse.resize(n);
        for (std::int64_t i = 0; i < n; ++i) coarse[i] = row[i] == row[i] ? row[i] : lowest;
        return kth_largest(coarse);
    }

    T kth_largest(std::vector<T> &x) const {
        std::nth_element(x.begin(), x.begin() + (k - 1), x.end(), [](T a, T b) { return a > b; });
        return x[k - 1];
    }

    void collect(const T *row, T bound) {
        std::int64_t start = 0;
        if (grouped) {
            for (std::int64_t b = 0; b < blocks; ++b) {
                std::uint32_t hits = lanes_above(maxima.data() + b * lanes, bound);
                for (; hits; hits &= hits - 1) {
                    std::int64_t first = b * block + __builtin_ctz(hits);
                    for (std::int64_t i = first; i < first + block; i += lanes)
                        if (row[i] > bound) above.push_back({row[i], i});
                }
            }
            start = blocks * block;
        }
        for (std::int64_t i = start; i < n; ++i)
            if (row[i] > bound) above.push_back({row[i], i});
    }

    // Fills the places from `kept` on with the entries that `fits` accepts, from the left.
    template <class Fits>
    void fill(const T *row, std::int64_t &kept, T *values, std::int64_t *indices, Fits fits) const {
        for (std::int64_t i = 0; kept < k && i < n; ++i)
            if (fits(row[i])) {
                values[kept] = row[i];
                indices[kept++] = i;
            }
    }
};

}  // namespace ellzero
