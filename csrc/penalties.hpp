// Scalar penalties p(w), each with its proximal map, for loops that are compiled per penalty.
//
// Twins of the dataclasses in src/ellzero/parts/penalties.py; tests/kernels/test_penalties.py holds them equal.
// Every struct has
//   T prox(T x, T step)   the global minimiser of (w - x)^2 / 2 + step * p(w); a draw goes to the smaller magnitude
//   T value(T x)          p(x)
//   T slope(T size)       the derivative of p at a magnitude above zero
//   T kink()              the derivative of p at 0+, infinite where zero is always a local minimum
// Weights scale the penalty (0: unpenalised, infinite: the coefficient is 0) and positivity forbids w < 0: both are
// handled once, by the free functions at the end, for x that may also be infinite or NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>

namespace ellzero::penalties {

template <class T> constexpr T infinity = std::numeric_limits<T>::infinity();

template <class T> inline T soft(T x, T threshold) {
    const T size = std::abs(x) - threshold;
    return size > T(0) ? std::copysign(size, x) : T(0);
}

// alpha |w|
template <class T> struct L1 {
    static constexpr bool indicator = false;
    T alpha;
    T prox(T x, T step) const { return soft(x, alpha * step); }
    T value(T x) const { return alpha * std::abs(x); }
    T slope(T) const { return alpha; }
    T kink() const { return alpha; }
};

// alpha [w != 0]
template <class T> struct L0 {
    static constexpr bool indicator = false;
    T alpha;
    T prox(T x, T step) const { return std::abs(x) > std::sqrt(T(2) * alpha * step) ? x : T(0); }
    T value(T x) const { return x != T(0) ? alpha : T(0); }
    T slope(T) const { return T(0); }
    T kink() const { return alpha > T(0) ? infinity<T> : T(0); }
};

// alpha (l1_ratio |w| + (1 - l1_ratio) w^2 / 2)
template <class T> struct ElasticNet {
    static constexpr bool indicator = false;
    T alpha, l1_ratio;
    T prox(T x, T step) const {
        return soft(x, alpha * l1_ratio * step) / (T(1) + alpha * (T(1) - l1_ratio) * step);
    }
    T value(T x) const { return alpha * (l1_ratio * std::abs(x) + (T(1) - l1_ratio) * x * x / T(2)); }
    T slope(T size) const { return alpha * (l1_ratio + (T(1) - l1_ratio) * size); }
    T kink() const { return alpha * l1_ratio; }
};

// alpha |w| - w^2 / (2 gamma) up to |w| = alpha gamma, constant beyond
template <class T> struct MCP {
    static constexpr bool indicator = false;
    T alpha, gamma;
    T prox(T x, T step) const {
        const T size = std::abs(x);
        // From step = gamma on the sum is concave up to the knee, so one of its two ends wins.
        if (step >= gamma) return size > alpha * std::sqrt(step * gamma) ? x : T(0);
        if (size >= alpha * gamma) return x;
        return soft(x, alpha * step) / (T(1) - step / gamma);
    }
    T value(T x) const {
        const T size = std::abs(x);
        return size < alpha * gamma ? alpha * size - size * size / (T(2) * gamma) : gamma * alpha * alpha / T(2);
    }
    T slope(T size) const { return std::max(alpha - size / gamma, T(0)); }
    T kink() const { return alpha; }
};

// alpha |w| up to alpha, then a quadratic of falling slope, constant beyond alpha gamma
template <class T> struct SCAD {
    static constexpr bool indicator = false;
    T alpha, gamma;
    T prox(T x, T step) const {
        const T size = std::abs(x), shrunk = soft(x, alpha * step);
        if (step >= gamma - T(1)) {
            // The middle piece is concave: the minimum lies on the first piece or at x itself.
            const T draw = step >= gamma + T(1) ? std::sqrt(step * (gamma + T(1))) : (step + gamma + T(1)) / T(2);
            return size > alpha * draw ? x : shrunk;
        }
        if (size <= alpha * (T(1) + step)) return shrunk;
        if (size >= alpha * gamma) return x;
        return std::copysign(((gamma - T(1)) * size - alpha * gamma * step) / (gamma - T(1) - step), x);
    }
    T value(T x) const {
        const T size = std::abs(x);
        if (size <= alpha) return alpha * size;
        if (size >= alpha * gamma) return alpha * alpha * (gamma + T(1)) / T(2);
        return (T(2) * alpha * gamma * size - size * size - alpha * alpha) / (T(2) * (gamma - T(1)));
    }
    T slope(T size) const {
        return size <= alpha ? alpha : std::max(alpha * gamma - size, T(0)) / (gamma - T(1));
    }
    T kink() const { return alpha; }
};

// alpha log(1 + |w| / epsilon)
template <class T> struct LogSum {
    static constexpr bool indicator = false;
    T alpha, epsilon;
    T prox(T x, T step) const {
        const T size = std::abs(x), weight = alpha * step, root = T(2) * std::sqrt(weight);
        if (size + epsilon < root) return T(0);
        const T split = std::sqrt(size + epsilon - root) * std::sqrt(size + epsilon + root);
        // The larger stationary point, in the form without cancellation.
        const T w = size >= epsilon ? (size - epsilon + split) / T(2)
                                    : T(2) * (size * epsilon - weight) / (epsilon - size + split);
        if (!(w > T(0))) return T(0);
        if (weight > epsilon * epsilon && w / T(2) - size + weight * std::log1p(w / epsilon) / w >= T(0)) return T(0);
        return std::copysign(w, x);
    }
    T value(T x) const { return alpha * std::log1p(std::abs(x) / epsilon); }
    T slope(T size) const { return alpha / (epsilon + size); }
    T kink() const { return alpha / epsilon; }
};

// alpha |w|^q, 0 < q < 1: exact for q = 1/2 and 2/3, Newton's method otherwise
template <class T> struct Lq {
    static constexpr bool indicator = false;
    T alpha, q;
    double jump;   // the threshold at alpha * step = 1
    double slope1; // q jump^(q - 2)
    Lq(T alpha_, double q_) : alpha(alpha_), q(T(q_)) {
        const double kept = std::pow(2 * (1 - q_), 1 / (2 - q_));
        jump = kept + q_ * std::pow(kept, q_ - 1);
        slope1 = q_ * std::pow(jump, q_ - 2);
        half = q_ == 0.5;
        two_thirds = std::abs(q_ - 2.0 / 3.0) < 1e-12;
    }
    // The minimiser over x, as a function of t = |x| / threshold > 1.
    T ratio(T t) const {
        if (half) {
            const T angle = std::acos(T(0.70710678118654752440) / (t * std::sqrt(t)));
            return T(2) / T(3) * (T(1) + std::cos(T(2.09439510239319549231) - T(2) / T(3) * angle));
        }
        if (two_thirds) {
            const T third = std::acosh(T(1.29903810567665797014) * t * t) / T(3);
            const T square = T(1.45483151462896172) * std::cosh(third);  // (4 / sqrt 3) 2^(-2/3) cosh
            const T a = std::sqrt(square);
            const T root = (a + std::sqrt(std::max(T(2) * t / a - square, T(0)))) / T(2);
            return root * root * root / t;
        }
        // r - 1 + c r^(q - 1) is convex, and increasing right of its larger root: Newton's steps from 1 only fall.
        const T c = T(slope1) * std::pow(t, q - T(2));
        T r = T(1);
        for (int i = 0; i < 12; ++i) {
            const T power = c * std::pow(r, q - T(2));
            r -= (r - T(1) + power * r) / (T(1) - (T(1) - q) * power);
        }
        return r;
    }
    T prox(T x, T step) const {
        const T weight = alpha * step;
        if (weight == T(0)) return x;
        const T t = std::abs(x) / (T(jump) * std::pow(weight, T(1) / (T(2) - q)));
        return t > T(1) ? x * ratio(std::min(t, T(1e13))) : T(0);
    }
    T value(T x) const { return x != T(0) ? alpha * std::pow(std::abs(x), q) : T(0); }
    T slope(T size) const { return alpha * q * std::pow(size, q - T(1)); }
    T kink() const { return alpha > T(0) ? infinity<T> : T(0); }

  private:
    bool half, two_thirds;
};

// alpha - norm^2 / 2 (|w| - sqrt(2 alpha) / norm)^2 up to |w| = sqrt(2 alpha) / norm, alpha beyond: an MCP
template <class T> struct CEL0 {
    static constexpr bool indicator = false;
    MCP<T> mcp;
    CEL0(T alpha, T norm) : mcp{norm * std::sqrt(T(2) * alpha), T(1) / (norm * norm)} {}
    T prox(T x, T step) const { return mcp.prox(x, step); }
    T value(T x) const { return mcp.value(x); }
    T slope(T size) const { return mcp.slope(size); }
    T kink() const { return mcp.kink(); }
};

// 0 where low <= w <= high, infinite elsewhere; either bound may be infinite
template <class T> struct Box {
    static constexpr bool indicator = true;
    T low, high;
    T prox(T x, T) const { return x < low ? low : x > high ? high : x; }
    T value(T x) const { return x < low || x > high ? infinity<T> : T(0); }
    T slope(T) const { return T(0); }
    T kink() const { return T(0); }
};

// The prox of weight * p, restricted to w >= 0 if `positive`.
template <class T, class P>
inline T prox(const P& penalty, T x, T step, T weight = T(1), bool positive = false) {
    if constexpr (P::indicator) {
        return penalty.prox(x, step);
    } else {
        if (weight == infinity<T>) return T(0);
        if (positive && x <= T(0)) return T(0);
        if (!std::isfinite(x) || step * weight == T(0)) return x;
        return penalty.prox(x, step * weight);
    }
}

template <class T, class P> inline T value(const P& penalty, T x, T weight = T(1), bool positive = false) {
    if constexpr (P::indicator) {
        return penalty.value(x);
    } else {
        if (positive && x < T(0)) return infinity<T>;
        if (x == T(0) || weight == T(0)) return T(0);
        return weight == infinity<T> ? weight : weight * penalty.value(x);
    }
}

// How far -gradient is from the (limiting) subdifferential of weight * p at w: 0 where w is stationary.
template <class T, class P>
inline T subdifferential_distance(const P& penalty, T w, T gradient, T weight = T(1), bool positive = false) {
    if constexpr (P::indicator) {
        if (w <= penalty.low && w >= penalty.high) return T(0);
        if (w <= penalty.low) return std::max(-gradient, T(0));
        if (w >= penalty.high) return std::max(gradient, T(0));
        return std::abs(gradient);
    } else {
        if (weight == infinity<T>) return std::abs(w) > T(0) ? infinity<T> : T(0);
        if (positive && w < T(0)) return infinity<T>;
        if (w == T(0)) {
            const T kink = weight > T(0) ? weight * penalty.kink() : T(0);
            return std::max((positive ? -gradient : std::abs(gradient)) - kink, T(0));
        }
        if (weight == T(0)) return std::abs(gradient);
        return std::abs(gradient + std::copysign(weight * penalty.slope(std::abs(w)), w));
    }
}

// Calls `use(penalty)` with the struct that (name, params) stands for; what the dataclass calls `compiled`.
template <class T, class Use>
decltype(auto) dispatch(std::string_view name, const double* params, std::size_t n, Use&& use) {
    const auto need = [&](std::size_t wanted) {
        if (n != wanted)
            throw std::invalid_argument("params: got " + std::to_string(n) + " for " + std::string(name) + ", want " +
                                        std::to_string(wanted));
    };
    const auto at = [&](std::size_t i) { return static_cast<T>(params[i]); };
    if (name == "L1") return need(1), use(L1<T>{at(0)});
    if (name == "L0") return need(1), use(L0<T>{at(0)});
    if (name == "ElasticNet") return need(2), use(ElasticNet<T>{at(0), at(1)});
    if (name == "MCP") return need(2), use(MCP<T>{at(0), at(1)});
    if (name == "SCAD") return need(2), use(SCAD<T>{at(0), at(1)});
    if (name == "LogSum") return need(2), use(LogSum<T>{at(0), at(1)});
    if (name == "Lq") return need(2), use(Lq<T>(at(0), params[1]));
    if (name == "CEL0") return need(2), use(CEL0<T>(at(0), at(1)));
    if (name == "Box") return need(2), use(Box<T>{at(0), at(1)});
    throw std::invalid_argument("penalty: got '" + std::string(name) +
                                "', want one of L1, L0, ElasticNet, MCP, SCAD, LogSum, Lq, CEL0, Box");
}

} // namespace ellzero::penalties
