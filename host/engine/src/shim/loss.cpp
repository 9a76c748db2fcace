// Losses of outputs [..., n] against symbols [...]: all rows in one pass, and one back.
//
// Entry points follow the conventions of shim.cpp.

#include "lanes.h"

#include <algorithm>
#include <numeric>
#include <vector>

using at::Tensor;

namespace {

// Of a row x with the symbol t: half the sum of (x - one_hot(t))^2, or log sum exp(x) - x_t.
enum class Loss : int32_t { kHalfSquaredError, kCrossEntropy };

// One unit is some rows of `n` numbers.
template <typename T>
struct Rows {
  Loss loss;
  int64_t rows, n;
  const T* x;
  const int64_t* symbols;
  const T* weights;  // [rows]; or null
  double* sums;      // one a unit
  // Of the backward pass only.
  T g;
  T* dx;

  // By the size of a row alone.
  int64_t rows_of_unit() const { return std::max<int64_t>(1, kGrain / n); }
  int64_t units() const { return (rows + rows_of_unit() - 1) / rows_of_unit(); }
};

template <typename T>
FWP_PART T largest(const T* x, int64_t n) {
  T most = x[0];
  int64_t i = 0;
  if (n >= Line<T>::lanes) {
    Line<T> lanes, v;
    read(lanes, x);
    for (i = Line<T>::lanes; i + Line<T>::lanes <= n; i += Line<T>::lanes) {
      read(v, x + i);
      lanes.low = v.low > lanes.low ? v.low : lanes.low;
      lanes.high = v.high > lanes.high ? v.high : lanes.high;
    }
    lanes.low = lanes.high > lanes.low ? lanes.high : lanes.low;
    for (int j = 0; j < Line<T>::lanes / 2; ++j) most = lanes.low[j] > most ? lanes.low[j] : most;
  }
  for (; i < n; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

// The sum of e^(x - most).
template <typename T>
FWP_PART T sum_exponentials(const T* x, T most, int64_t n) {
  Line<T> lanes = {};
  int64_t i = 0;
  for (; i + Line<T>::lanes <= n; i += Line<T>::lanes) {
    T e[Line<T>::lanes];
    for (int j = 0; j < Line<T>::lanes; ++j) e[j] = exponential<T>(x[i + j] - most);
    Line<T> v;
    read(v, e);
    lanes.low += v.low, lanes.high += v.high;
  }
  T sum = total(lanes);
  for (; i < n; ++i) sum += exponential<T>(x[i] - most);
  return sum;
}

template <typename T>
FWP_PART void losses(const Rows<T>& o, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    double sum = 0;
    const int64_t last = std::min(o.rows, (unit + 1) * o.rows_of_unit());
    for (int64_t row = unit * o.rows_of_unit(); row < last; ++row) {
      const T* x = o.x + row * o.n;
      const int64_t t = o.symbols[row];
      T loss;
      if (o.loss == Loss::kHalfSquaredError) {
        // Apart from the others: their sum would swallow a small difference.
        const T* after = x + t + 1;
        const T others = sum_of<T, true, false>(x, x, nullptr, t) + sum_of<T, true, false>(after, after, nullptr, o.n - t - 1);
        loss = T(0.5) * (others + (x[t] - T(1)) * (x[t] - T(1)));
      } else {
        const T most = largest<T>(x, o.n);
        loss = std::log(sum_exponentials<T>(x, most, o.n)) + (most - x[t]);
      }
      sum += o.weights == nullptr ? loss : loss * o.weights[row];
    }
    o.sums[unit] = sum;
  }
}

template <typename T>
FWP_PART void losses_back(const Rows<T>& o, int64_t begin, int64_t end) {
  const int64_t last = std::min(o.rows, end * o.rows_of_unit());
  for (int64_t row = begin * o.rows_of_unit(); row < last; ++row) {
    const T* __restrict x = o.x + row * o.n;
    T* __restrict dx = o.dx + row * o.n;
    const T g = o.weights == nullptr ? o.g : o.g * o.weights[row];
    if (o.loss == Loss::kHalfSquaredError) {
      for (int64_t i = 0; i < o.n; ++i) dx[i] = g * x[i];
      dx[o.symbols[row]] = g * (x[o.symbols[row]] - T(1));
    } else {
      const T most = largest<T>(x, o.n);
      const T scale = g / sum_exponentials<T>(x, most, o.n);
      for (int64_t i = 0; i < o.n; ++i) dx[i] = scale * exponential<T>(x[i] - most);
      dx[o.symbols[row]] -= g;
    }
  }
}

FWP_KERNEL(loss, losses, Rows)
FWP_KERNEL(loss_back, losses_back, Rows)

// What both passes are given, with rows in the order in which the outputs lie in memory.
struct Given {
  std::vector<int64_t> order;  // of the axes
  Tensor output, symbols, weights;

  Given(const Tensor& output_, const Tensor& symbols_, const Tensor* weights_) : order(symbols_.dim()) {
    TORCH_CHECK(output_.dim() == symbols_.dim() + 1 && output_.sizes().slice(0, symbols_.dim()) == symbols_.sizes() &&
                    output_.numel() > 0 && symbols_.scalar_type() == at::kLong,
                "a loss of ", output_.sizes(), " and symbols ", symbols_.sizes());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return output_.stride(a) > output_.stride(b); });
    symbols = symbols_.permute(order).contiguous();
    if (weights_ != nullptr) {
      expect(*weights_, output_, symbols_.sizes(), "the weights");
      weights = weights_->permute(order).contiguous();
    }
    output = rows_first(output_).contiguous();
    const int64_t n = output.size(-1);
    const int64_t* t = symbols.const_data_ptr<int64_t>();
    for (int64_t row = 0; row < symbols.numel(); ++row) {
      TORCH_CHECK(t[row] >= 0 && t[row] < n, "the target ", t[row], " is not among ", n, " symbols");
    }
  }

  Tensor rows_first(const Tensor& t) const {
    std::vector<int64_t> all = order;
    all.push_back(t.dim() - 1);
    return t.permute(all);
  }

  // The inverse of `rows_first`.
  Tensor as_given(const Tensor& t) const {
    std::vector<int64_t> back(t.dim(), t.dim() - 1);
    for (size_t i = 0; i < order.size(); ++i) back[order[i]] = i;
    return t.permute(back);
  }

  template <typename T>
  Rows<T> operation(Loss loss) const {
    Rows<T> o = {};
    o.loss = loss, o.rows = symbols.numel(), o.n = output.size(-1);
    o.x = output.const_data_ptr<T>(), o.symbols = symbols.const_data_ptr<int64_t>();
    if (weights.defined()) o.weights = weights.const_data_ptr<T>();
    return o;
  }
};

}  // namespace

extern "C" {

// The sum of all rows' losses, times their weights where there are some, as a tensor of no axes.
char* fwp_loss(const Tensor* output, const Tensor* symbols, const Tensor* weights, int32_t which, Tensor** sum) {
  return guarded([&] {
    Below below;
    const Given given(*output, *symbols, weights);
    by_type(given.output, [&](auto zero) {
      using T = decltype(zero);
      auto o = given.operation<T>(static_cast<Loss>(which));
      std::vector<double> sums(o.units());
      o.sums = sums.data();
      at::parallel_for(0, o.units(), 1, [&](int64_t begin, int64_t end) { loss<T>(o, begin, end); });
      *sum = new Tensor(at::scalar_tensor(std::accumulate(sums.begin(), sums.end(), 0.0), given.output.options()));
    });
  });
}

// The gradient of the outputs for a gradient `g` of the sum.
char* fwp_loss_back(const Tensor* g, const Tensor* output, const Tensor* symbols, const Tensor* weights, int32_t which,
                    Tensor** dx) {
  return guarded([&] {
    Below below;
    const Given given(*output, *symbols, weights);
    expect(*g, given.output, {}, "the gradient");
    Tensor to = at::empty_like(given.output);
    by_type(to, [&](auto zero) {
      using T = decltype(zero);
      auto o = given.operation<T>(static_cast<Loss>(which));
      o.g = *g->const_data_ptr<T>(), o.dx = to.mutable_data_ptr<T>();
      at::parallel_for(0, o.units(), 1, [&](int64_t begin, int64_t end) { loss_back<T>(o, begin, end); });
    });
    *dx = new Tensor(given.as_given(to));
  });
}

}  // extern "C"
