// Exact top-k over the inverted lists of impact_lists.hpp. Twin of kernels/impact.py.
//
// Scores of one window are added up in an array that fits in the first level of cache, term by term; then the window is
// read once for what beats the threshold. Pruning never touches single postings: a window is left out as a whole, first
// by the sum of its terms' largest impacts, then by the best of its blocks' sums, which are held in four bits each.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "impact_lists.hpp"

namespace ellzero {

// ---------------------------------------------------------------- the k best so far

// Keys are unique and ordered as hits are: score descending, then place of the id ascending.
class Best {
  public:
    std::int32_t least = 1;  // scores from here on may enter

    void start(std::int64_t wanted, std::int32_t from) {
        k = wanted;
        least = std::max(from, 1);
        floor = (std::uint64_t(least) << 32) - 1;
        room = 2 * k + 64;
        keys.clear();
        keys.reserve(room);
    }
    void offer(std::int32_t score, std::uint32_t rank) {
        const std::uint64_t key = std::uint64_t(std::uint32_t(score)) << 32 | (0xffffffffu - rank);
        if (key <= floor) return;
        keys.push_back(key);
        if (std::int64_t(keys.size()) == room) cut();
    }
    // Raises the threshold after a window, where that is worth its cost.
    void settle() {
        if (std::int64_t(keys.size()) >= k + k / 4) cut();
    }
    std::int64_t finish(std::int32_t *scores, std::int64_t *ranks) {
        cut();
        sort();
        for (std::size_t i = 0; i < keys.size(); ++i) {
            scores[i] = static_cast<std::int32_t>(keys[i] >> 32);
            ranks[i] = 0xffffffffu - static_cast<std::uint32_t>(keys[i]);
        }
        return keys.size();
    }

  private:
    std::int64_t k = 0, room = 0;
    std::uint64_t floor = 0;
    std::vector<std::uint64_t> keys, spare;
    static constexpr int buckets = 1024, few = 256;

    // Keeps the k largest.
    void cut() {
        const std::int64_t count = keys.size();
        if (count < k || k == 0) return;
        const std::int64_t sure = count > few ? sort_out() : 0;
        std::nth_element(keys.begin() + sure, keys.begin() + (k - 1), keys.end(), std::greater<std::uint64_t>());
        keys.resize(k);
        floor = std::max(floor, keys[k - 1]);
        least = std::max<std::int32_t>(least, static_cast<std::int32_t>(keys[k - 1] >> 32));
    }

    // Counts scores and keeps, without a guessed branch, first the keys that are among the k largest for sure (their
    // number is returned), then those with scores near the k-th.
    std::int64_t sort_out() {
        std::uint64_t largest = 0;
        for (std::uint64_t key : keys) largest = std::max(largest, key);
        int shift = 32;
        while (((largest >> shift) - (floor >> shift)) >= buckets) ++shift;
        const std::uint64_t base = floor >> shift;
        std::uint32_t of[buckets] = {};
        for (std::uint64_t key : keys) ++of[(key >> shift) - base];
        std::uint64_t edge = (largest >> shift) - base;
        std::int64_t above = 0;
        for (; above + of[edge] < k; --edge) above += of[edge];
        spare.resize(keys.size() + 1);
        std::int64_t sure = 0, near = 0;
        for (std::uint64_t key : keys) {
            const std::uint64_t bucket = (key >> shift) - base;
            keys[sure] = key, spare[near] = key;  // `sure` never passes the key that is read
            sure += bucket > edge, near += bucket == edge;
        }
        std::copy_n(spare.begin(), near, keys.begin() + sure);
        keys.resize(sure + near);
        return sure;
    }

    // Falling; by the bytes in which keys differ, from the last one on.
    void sort() {
        if (std::int64_t(keys.size()) <= few) return std::sort(keys.begin(), keys.end(), std::greater<std::uint64_t>());
        std::uint64_t varying = 0;
        for (std::uint64_t key : keys) varying |= key ^ keys[0];
        spare.resize(keys.size());
        for (int shift = 0; shift < 64; shift += 8) {
            if (!(varying >> shift & 255)) continue;
            std::uint32_t at[257] = {};
            for (std::uint64_t key : keys) ++at[256 - (key >> shift & 255)];
            for (int value = 1; value < 257; ++value) at[value] += at[value - 1];
            for (std::uint64_t key : keys) spare[at[255 - (key >> shift & 255)]++] = key;
            keys.swap(spare);
        }
    }
};

// ---------------------------------------------------------------- search

struct SearchCounts {
    std::int64_t scored = 0, left_by_window = 0, left_by_block = 0, postings = 0;
};

class ImpactSearch {
  public:
    explicit ImpactSearch(const ImpactLists &x) : x(x), scores(1 << 16, 0), bound(x.windows), order(x.windows) {}

    // The k best of one query. `allowed` [documents] or null; `open` says which windows hold an allowed document.
    std::int64_t operator()(const std::int32_t *terms, const std::int32_t *weights, std::int64_t count, std::int64_t k,
                            bool prune, double alpha, const std::uint8_t *allowed, const std::uint8_t *open,
                            std::int32_t *found, std::int64_t *ranks, SearchCounts &counts) {
        query = query_terms(x, terms, weights, count);
        best.start(k, allowed ? 0 : known_threshold(k));
        if (query.empty() || k == 0) return 0;
        place_cuts();
        arrange(open);
        if (prune) scale_bounds();
        std::size_t ask = 0, pause = 1;
        for (std::size_t i = 0; i < order.size(); ++i) {
            const std::int64_t w = order[i];
            if (prune && bound[w] * alpha < best.least) {
                counts.left_by_window += order.size() - i;
                break;
            }
            // Where bounds of blocks are asked in vain, twice as many windows pass before they are asked again.
            if (prune && i >= ask) {
                if (i + 1 < order.size()) fetch_bounds(order[i + 1]);
                const double needed = (std::floor(best.least * scale) - 1) / alpha;
                if (block_bound(w, needed) < needed) {
                    pause = 1;
                    ++counts.left_by_block;
                    continue;
                }
                ask = i + 1 + pause;
                pause = std::min<std::size_t>(2 * pause, 32);
            }
            score_window(w, i + 1 < order.size() ? order[i + 1] : -1, counts);
            collect(w, allowed);
            best.settle();
            ++counts.scored;
        }
        return best.finish(found, ranks);
    }

  private:
    const ImpactLists x;
    std::vector<std::int32_t> scores;
    std::vector<std::int32_t> bound;
    std::vector<std::int32_t> order;
    std::vector<QueryTerm> query;
    struct PlacedCut {
        std::uint32_t at, size : 24, largest : 8;
    };
    std::vector<PlacedCut> cuts;  // [windows, dense]
    std::int64_t dense = 0;       // terms of the query with dense lists; they stand first
    Best best;
    double scale = 0;

    // k documents reach at least this much from one term alone.
    std::int32_t known_threshold(std::int64_t k) const {
        int column = 0;
        while (column < 4 && kth_ranks[column] < k) ++column;
        std::int32_t threshold = 0;
        if (column < 4)
            for (const QueryTerm &q : query) threshold = std::max(threshold, q.weight * q.kth[column]);
        return threshold;
    }

    // Where the cuts of the dense lists begin, window by window, so that those of one window stand together.
    void place_cuts() {
        dense = std::stable_partition(query.begin(), query.end(), [](const QueryTerm &q) { return q.largest; }) - query.begin();
        cuts.resize(dense * x.windows);
        for (std::int64_t j = 0; j < dense; ++j) {
            PlacedCut *to = cuts.data() + j;
            std::uint32_t at = 0;
            const std::uint8_t *largest = query[j].largest;
            each_size(x, query[j].term, [&](std::uint32_t size) {
                *to = {at, size, *largest++};
                at += static_cast<std::uint32_t>(cut_bytes(size, x.shift));
                to += dense;
            });
        }
    }
    const PlacedCut *placed(std::int64_t w) const { return cuts.data() + w * dense; }

    // Windows that may hold a hit, the most promising first.
    void arrange(const std::uint8_t *open) {
        std::fill(bound.begin(), bound.end(), 0);
        for (const QueryTerm &q : query) {
            if (q.largest) {
                for (std::int64_t w = 0; w < x.windows; ++w) bound[w] += q.weight * q.largest[w];
                continue;
            }
            const int shift = x.shift + 6;
            for (std::int64_t i = 0; i < q.count;) {
                const std::uint32_t w = q.document(i) >> shift;
                std::int32_t largest = 0;
                for (; i < q.count && q.document(i) >> shift == w; ++i) largest = std::max<std::int32_t>(largest, q.impact(i));
                if (w < x.windows) bound[w] += q.weight * largest;
            }
        }
        order.clear();
        for (std::int64_t w = 0; w < x.windows; ++w)
            if (bound[w] >= best.least && (!open || open[w])) order.push_back(static_cast<std::int32_t>(w));
        std::sort(order.begin(), order.end(),
                  [&](std::int32_t a, std::int32_t b) { return bound[a] > bound[b] || (bound[a] == bound[b] && a < b); });
    }

    void score_window(std::int64_t w, std::int64_t next, SearchCounts &counts) {
        const PlacedCut *here = placed(w), *then = next < 0 ? nullptr : placed(next);
        for (std::int64_t j = 0; j < dense; ++j) {
            const QueryTerm &q = query[j];
            if (then) fetch(q.list + then[j].at, cut_bytes(then[j].size, x.shift));
            const Cut cut = find_cut(q.list + here[j].at, here[j].size, x.shift);
            counts.postings += cut.count;
            add_cut(cut, q.weight, scores.data());
        }
        const std::uint64_t from = std::uint64_t(w) * x.window();
        for (std::size_t j = dense; j < query.size(); ++j) {
            const QueryTerm &q = query[j];
            for (std::int64_t i = q.lower_bound(from); i < q.count; ++i, ++counts.postings) {
                const std::uint64_t place = q.document(i) - from;
                if (place >= std::uint64_t(x.window())) break;
                scores[place] += q.weight * q.impact(i);
            }
        }
    }

    static void fetch(const std::uint8_t *at, std::int64_t bytes) {
        const std::uint8_t *end = at + std::min<std::int64_t>(bytes, 12 * 64);
        for (; at < end; at += 64) __builtin_prefetch(at, 0, 3);
    }

    void fetch_bounds(std::int64_t w) const {
        for (std::int64_t j = 0; j < dense; ++j) __builtin_prefetch(query[j].list + placed(w)[j].at, 0, 3);
    }

    // Offers what reaches the threshold, and clears the scores.
    void collect(std::int64_t w, const std::uint8_t *allowed) {
        const std::int64_t first = w * x.window(), count = std::min(x.window(), x.documents - first);
        auto offer = [&](std::int64_t place) {
            if (!allowed || allowed[first + place]) best.offer(scores[place], x.rank[first + place]);
        };
        std::int64_t i = 0;
#if defined(__AVX2__)
        for (; i + 32 <= count; i += 32) {
            const __m256i under = _mm256_set1_epi32(best.least - 1);
            __m256i *at = reinterpret_cast<__m256i *>(scores.data() + i);
            __m256i hit[4];
            for (int j = 0; j < 4; ++j) hit[j] = _mm256_cmpgt_epi32(_mm256_loadu_si256(at + j), under);
            const __m256i any = _mm256_or_si256(_mm256_or_si256(hit[0], hit[1]), _mm256_or_si256(hit[2], hit[3]));
            if (!_mm256_testz_si256(any, any))
                for (int j = 0; j < 4; ++j) {
                    unsigned bits = _mm256_movemask_ps(_mm256_castsi256_ps(hit[j]));
                    for (; bits; bits &= bits - 1) offer(i + 8 * j + __builtin_ctz(bits));
                }
            for (int j = 0; j < 4; ++j) _mm256_storeu_si256(at + j, _mm256_setzero_si256());
        }
#endif
        for (; i < count; ++i) {
            if (scores[i] >= best.least) offer(i);
            scores[i] = 0;
        }
    }

    // Bounds of blocks are sums of 16 bits in units of 1 / scale, each part rounded up: the largest sum just fits.
    void scale_bounds() {
        double total = 1;
        for (const QueryTerm &q : query) total += double(q.weight) * q.kth[0];
        scale = std::min(1.0, (65000.0 - 2 * query.size()) / total);
        if (scale <= 0) scale = 0;
        for (QueryTerm &q : query) {
            q.step = static_cast<float>(q.weight * scale);
            const double top = q.kth[0];
            for (int level = 0; level < 16; ++level) {
                const int value = level == 0 ? 0 : static_cast<int>(q.weight * scale * (top * level / 15)) + 1;
                q.low[level] = static_cast<std::uint8_t>(value);
                q.high[level] = static_cast<std::uint8_t>(value >> 8);
            }
        }
    }

    // At least the largest of the window's sums of block bounds, as precise as it takes to tell whether it is `needed`.
    std::int32_t block_bound(std::int64_t w, double needed) {
        alignas(32) std::uint16_t sum[window_blocks] = {};
        const std::uint64_t from = std::uint64_t(w) * x.window();
        auto add = [&](const QueryTerm &q, std::uint32_t place, std::uint8_t impact) {
            if (!impact) return;
            std::uint16_t &into = sum[seat(place >> x.shift & (window_blocks - 1))];
            into = static_cast<std::uint16_t>(std::min(65535, into + scaled(q, impact)));
        };
        bounded.clear(), loose.clear();
        std::int32_t rest = 0;  // what the cuts without bounds add at most
        for (std::size_t j = dense; j < query.size(); ++j) {
            const QueryTerm &q = query[j];
            for (std::int64_t i = q.lower_bound(from); i < q.count && q.document(i) - from < std::uint64_t(x.window()); ++i)
                add(q, static_cast<std::uint32_t>(q.document(i) - from), q.impact(i));
        }
        for (std::int64_t j = 0; j < dense; ++j) {
            const QueryTerm &q = query[j];
            const Cut cut = find_cut(q.list + placed(w)[j].at, placed(w)[j].size, x.shift);
            if (cut.bounds) {
                bounded.push_back({&q, cut.bounds});
            } else if (cut.count) {
                loose.push_back({&q, cut, scaled(q, placed(w)[j].largest)});
                rest += loose.back().most;
            }
        }
        add_bounds(sum);
        const std::int32_t least = largest_sum(sum);
        if (least >= needed || least + rest < needed) return least + rest;
        std::sort(loose.begin(), loose.end(), [](const Loose &a, const Loose &b) { return a.most > b.most; });
        for (const Loose &l : loose) {
            add_loose(l, sum);
            rest -= l.most;
            const std::int32_t now = largest_sum(sum);
            if (now >= needed || now + rest < needed) return now + rest;
        }
        return largest_sum(sum);
    }

    static int scaled(const QueryTerm &q, std::uint8_t impact) { return static_cast<int>(q.step * impact * 1.000001f) + 1; }

    struct Loose {
        const QueryTerm *term;
        Cut cut;
        std::int32_t most;
    };
    std::vector<Loose> loose;

    // Adds the largest impact of each block; a block's postings stand side by side.
    void add_loose(const Loose &l, std::uint16_t *sum) const {
        int block = 0;
        std::uint8_t largest = 0;
        auto put = [&] {
            std::uint16_t &into = sum[seat(block & (window_blocks - 1))];
            into = static_cast<std::uint16_t>(std::min(65535, into + scaled(*l.term, largest)));
        };
        each_posting(l.cut, [&](std::uint16_t place, std::uint8_t impact) {
            const int next = place >> x.shift;
            if (next != block) {
                if (largest) put();
                largest = 0;
            }
            block = next;
            largest = std::max(largest, impact);
        });
        if (largest) put();
    }

    struct Bounded {
        const QueryTerm *term;
        const std::uint8_t *levels;
    };
    std::vector<Bounded> bounded;

    // Where block j's sum stands: registers are interleaved within their halves.
    static int seat(int j) {
#if defined(__AVX2__)
        return (j & 39) | (j & 8) << 1 | (j & 16) >> 1;
#else
        return j;
#endif
    }

    void add_bounds(std::uint16_t *sum) const {
#if defined(__AVX2__)
        __m256i s[4];
        for (int j = 0; j < 4; ++j) s[j] = _mm256_load_si256(reinterpret_cast<const __m256i *>(sum) + j);
        const __m256i nibble = _mm256_set1_epi8(15);
        for (const Bounded &b : bounded) {
            const __m256i low = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(b.term->low)));
            const __m256i high = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(b.term->high)));
            const __m256i levels = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b.levels));
            for (int half = 0; half < 2; ++half) {
                const __m256i at = _mm256_and_si256(half ? _mm256_srli_epi16(levels, 4) : levels, nibble);
                const __m256i l = _mm256_shuffle_epi8(low, at), h = _mm256_shuffle_epi8(high, at);
                s[2 * half] = _mm256_adds_epu16(s[2 * half], _mm256_unpacklo_epi8(l, h));
                s[2 * half + 1] = _mm256_adds_epu16(s[2 * half + 1], _mm256_unpackhi_epi8(l, h));
            }
        }
        for (int j = 0; j < 4; ++j) _mm256_store_si256(reinterpret_cast<__m256i *>(sum) + j, s[j]);
#else
        for (const Bounded &b : bounded)
            for (int j = 0; j < window_blocks; ++j) {
                const int level = j < bounds_bytes ? b.levels[j] & 15 : b.levels[j - bounds_bytes] >> 4;
                sum[j] = static_cast<std::uint16_t>(std::min(65535, sum[j] + b.term->low[level] + (b.term->high[level] << 8)));
            }
#endif
    }

    static std::int32_t largest_sum(const std::uint16_t *sum) {
        std::uint16_t largest = 0;
        for (int j = 0; j < window_blocks; ++j) largest = std::max(largest, sum[j]);
        return largest;
    }
};

}  // namespace ellzero
