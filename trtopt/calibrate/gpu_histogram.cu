// Counts |x| of many tensors at once, in the 2**17 bins of histogram.py: the top 17 bits of the float32 magnitude.
//
// Each block takes an equal share of all elements, across tensors, and counts in shared memory. The bins of 24 powers
// of two fit there, 512 each. The block samples a few of its elements to find the 24 powers that hold most of them.
// Elements outside this window are counted directly in the tensor's bins in global memory. The many zeros after a ReLU
// would all contend for one bin, so each thread counts its zeros in a register. Needs compute capability 7.0 or later.

typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 512
#define POWERS 24
#define BINS_OF_A_POWER 512
#define WINDOW (POWERS * BINS_OF_A_POWER)  // 48 KB, available to a block on every GPU
#define SHIFT 14
#define MAGNITUDE 0x7fffffffu
#define WARP 0xffffffffu

enum Type { FLOAT32, FLOAT16, FLOAT64 };

struct Tensor {  // as gpu_histogram.py packs it: five 64-bit words
  u64 address;
  u64 size;   // in elements, at least 1
  u64 first;  // index of its first element among those of all tensors, a multiple of 4
  u64 type;
  u64 slot;  // index of its histogram
};

struct Extent {    // of the values in a histogram; all zero if it holds only zeros
  u32 top;         // bits of the largest magnitude
  u32 complement;  // ~ bits of the smallest magnitude that is not in bin 0
};

__device__ u32 magnitude(const Tensor& tensor, u64 i) {
  u32 bits;
  if (tensor.type == FLOAT32) {
    bits = reinterpret_cast<const u32*>(tensor.address)[i];
  } else if (tensor.type == FLOAT16) {
    float wide;  // converted without cuda_fp16.h, which a runtime compiler may not find
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(reinterpret_cast<const unsigned short*>(tensor.address)[i]));
    bits = __float_as_uint(wide);
  } else {
    bits = __float_as_uint(__double2float_rn(reinterpret_cast<const double*>(tensor.address)[i]));
  }
  return bits & MAGNITUDE;
}

// Returns the lowest of the `POWERS` powers of two that hold most of the elements from `low` to `high`, estimated from
// one element per thread. `scratch` is shared memory for 257 counters.
__device__ u32 aim(const Tensor& tensor, u64 low, u64 high, u32* scratch) {
  u32* best = scratch + 256;
  if (threadIdx.x <= 256) scratch[threadIdx.x] = 0;
  __syncthreads();
  const u64 stride = (high - low) / THREADS + 1;
  // Not at equal distances, which may coincide with the distance between channels.
  const u64 place = low + threadIdx.x * stride + threadIdx.x * 2654435761ull % stride;
  if (place < high) {
    const u32 found = magnitude(tensor, place);
    if (found >> SHIFT) atomicAdd(&scratch[found >> 23], 1u);
  }
  __syncthreads();
  if (threadIdx.x <= 256 - POWERS) {
    u32 held = 0;
    for (u32 power = 0; power < POWERS; ++power) held += scratch[threadIdx.x + power];
    // The high bits hold the count and the low bits the start, so one maximum finds both. The lowest start wins a tie.
    atomicMax(best, held << 8 | (255 - threadIdx.x));
  }
  __syncthreads();
  const u32 start = 255 - (*best & 255);
  __syncthreads();
  return start;
}

// Adds to counts[slot][2**17] and updates extents[slot]. The `n` tensors have `total` elements, where each size is
// rounded up to a multiple of 4. Block b counts elements b * share to (b + 1) * share; `share` is a multiple of 4.
extern "C" __global__ void __launch_bounds__(THREADS)
    count(const Tensor* tensors, u32 n, u64 total, u64 share, u64* counts, Extent* extents) {
  __shared__ u32 bins[WINDOW];
  u64 at = blockIdx.x * share;
  const u64 end = at + share < total ? at + share : total;
  u32 t = 0;
  for (u32 beyond = n; beyond - t > 1;) {  // binary search for the last tensor that starts at `at` or before
    const u32 middle = (t + beyond) / 2;
    if (tensors[middle].first <= at) {
      t = middle;
    } else {
      beyond = middle;
    }
  }
  for (; at < end; ++t) {
    const Tensor tensor = tensors[t];
    const u64 low = at - tensor.first;
    const u64 high = end - tensor.first < tensor.size ? end - tensor.first : tensor.size;
    at = tensor.first + (tensor.size + 3) / 4 * 4;  // start of the next tensor
    const u32 base = aim(tensor, low, high, bins) * BINS_OF_A_POWER;
    u64* mine = counts + (tensor.slot << 17);
    u32 zeros = 0, top = 0, least = MAGNITUDE;

    for (u32 i = threadIdx.x; i < WINDOW; i += THREADS) bins[i] = 0;
    __syncthreads();

    const auto put = [&](u32 word) {
      const u32 bits = word & MAGNITUDE;
      const u32 bin = bits >> SHIFT;
      if (bin == 0) {
        ++zeros;
        return;
      }
      top = max(top, bits);
      least = min(least, bits);
      if (bin - base < WINDOW) {
        atomicAdd(&bins[bin - base], 1u);
      } else {
        // Lanes with the same bin add once. Otherwise a tensor of two distant values would contend for one address.
        const u32 alike = __match_any_sync(__activemask(), bin);
        if (threadIdx.x % 32 == __ffs(alike) - 1) atomicAdd(&mine[bin], static_cast<u64>(__popc(alike)));
      }
    };
    u64 rest = low;
    if (tensor.type == FLOAT32 && tensor.address % 16 == 0) {
      const uint4* fours = reinterpret_cast<const uint4*>(tensor.address);
      const u64 stop = high / 4;
      u64 i = low / 4 + threadIdx.x;
      for (; i + THREADS < stop; i += 2 * THREADS) {
        // Two loads in flight at once. They bypass the cache, because no element is read twice.
        const uint4 v = __ldcs(&fours[i]), w = __ldcs(&fours[i + THREADS]);
        put(v.x), put(v.y), put(v.z), put(v.w);
        put(w.x), put(w.y), put(w.z), put(w.w);
      }
      if (i < stop) {
        const uint4 v = __ldcs(&fours[i]);
        put(v.x), put(v.y), put(v.z), put(v.w);
      }
      rest = stop * 4;
    }
    for (u64 i = rest + threadIdx.x; i < high; i += THREADS) put(magnitude(tensor, i));

    for (int lane = 16; lane; lane /= 2) {
      zeros += __shfl_down_sync(WARP, zeros, lane);
      top = max(top, __shfl_down_sync(WARP, top, lane));
      least = min(least, __shfl_down_sync(WARP, least, lane));
    }
    if (threadIdx.x % 32 == 0) {
      if (zeros) atomicAdd(mine, static_cast<u64>(zeros));
      if (top) {
        atomicMax(&extents[tensor.slot].top, top);
        atomicMax(&extents[tensor.slot].complement, ~least);
      }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < WINDOW; i += THREADS) {
      if (bins[i]) atomicAdd(&mine[base + i], static_cast<u64>(bins[i]));
    }
    __syncthreads();
  }
}
