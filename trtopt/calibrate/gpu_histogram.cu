// Counts |x| of many tensors at once, in the 2**17 bins of histogram.py: the top 17 bits of the float32 magnitude.
//
// A block takes an equal share of all elements, whichever tensors it falls in, and counts in shared memory. Bins of 24
// powers of two fit there, 512 each: `aim` looks at a sample of each tensor for the 24 that hold most of it. What lies
// outside is counted in the tensor's bins in global memory at once. Zeros, which a ReLU makes many of, would all wait for
// one bin: each thread counts its own in a register. For compute capability 7.0 and later.

typedef unsigned int u32;
typedef unsigned long long u64;

#define POWERS 24
#define BINS_OF_A_POWER 512
#define WINDOW (POWERS * BINS_OF_A_POWER)  // 48 KB, which every GPU gives a block
#define SHIFT 14
#define SAMPLE 4096

enum Type { FLOAT32, FLOAT16, FLOAT64 };

struct Tensor {  // as gpu_histogram.py packs it: five 64-bit words
  u64 address;
  u64 size;   // in elements, at least 1
  u64 first;  // its place among all elements, a multiple of 4
  u64 type;
  u64 slot;  // which histogram it is counted in
};

__device__ u32 magnitude(const Tensor& tensor, u64 i) {
  u32 bits;
  if (tensor.type == FLOAT32) {
    bits = reinterpret_cast<const u32*>(tensor.address)[i];
  } else if (tensor.type == FLOAT16) {
    float wide;  // without cuda_fp16.h, which a runtime compiler may not find
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(reinterpret_cast<const unsigned short*>(tensor.address)[i]));
    bits = __float_as_uint(wide);
  } else {
    bits = __float_as_uint(__double2float_rn(reinterpret_cast<const double*>(tensor.address)[i]));
  }
  return bits & 0x7fffffffu;
}

// One block of 256 threads for each tensor: windows[slot] is the lowest of the powers of two that shared memory holds.
extern "C" __global__ void aim(const Tensor* tensors, u32* windows) {
  __shared__ u32 seen[256];
  __shared__ u32 best;
  const Tensor tensor = tensors[blockIdx.x];
  seen[threadIdx.x] = 0;
  if (threadIdx.x == 0) best = 0;
  __syncthreads();
  const u64 stride = tensor.size / SAMPLE + 1;
  for (u64 i = threadIdx.x; i * stride < tensor.size; i += blockDim.x) {
    // Not at even distances, which may be those of the channels.
    const u64 place = i * stride + (i * 2654435761u) % stride;
    const u32 found = place < tensor.size ? magnitude(tensor, place) : 0;
    if (found >> SHIFT) atomicAdd(&seen[found >> 23], 1u);
  }
  __syncthreads();
  u32 held = 0;
  for (u32 power = threadIdx.x; power < threadIdx.x + POWERS && power < 256; ++power) held += seen[power];
  // The count above, the start below (the lowest wins a tie): one maximum finds both.
  if (threadIdx.x <= 256 - POWERS) atomicMax(&best, held << 8 | (255 - threadIdx.x));
  __syncthreads();
  if (threadIdx.x == 0) windows[tensor.slot] = 255 - (best & 255);
}

// Adds to counts[slot][2**17] and raises tops[slot], the largest magnitude's bits. `n` tensors have `total` elements, each
// size rounded up to a multiple of 4. Block b counts those from b * share to (b + 1) * share, a multiple of 4, too.
extern "C" __global__ void __launch_bounds__(512) count(const Tensor* tensors, u32 n, u64 total, u64 share,
                                                        const u32* windows, u64* counts, u32* tops) {
  __shared__ u32 bins[WINDOW];
  u64 at = blockIdx.x * share;
  const u64 end = at + share < total ? at + share : total;
  u32 t = 0;
  for (u32 beyond = n; beyond - t > 1;) {  // the last tensor that begins at `at` or before
    const u32 middle = (t + beyond) / 2;
    if (tensors[middle].first <= at) t = middle; else beyond = middle;
  }
  for (; at < end; ++t) {
    const Tensor tensor = tensors[t];
    const u64 low = at - tensor.first;
    at = tensor.first + (tensor.size + 3) / 4 * 4;  // where the next tensor begins
    const u64 high = at < end ? tensor.size : (end - tensor.first < tensor.size ? end - tensor.first : tensor.size);
    const u32 base = windows[tensor.slot] * BINS_OF_A_POWER;
    u64* mine = counts + (tensor.slot << 17);
    u32 zeros = 0, top = 0;

    for (u32 i = threadIdx.x; i < WINDOW; i += blockDim.x) bins[i] = 0;
    __syncthreads();

    const auto put = [&](u32 bits) {
      const u32 bin = (bits & 0x7fffffffu) >> SHIFT;
      top = max(top, bits & 0x7fffffffu);
      if (bin == 0) {
        ++zeros;
      } else if (bin - base < WINDOW) {
        atomicAdd(&bins[bin - base], 1u);
      } else {
        // Lanes with the same bin add once: a tensor of two values far apart would wait for one address otherwise.
        const u32 alike = __match_any_sync(__activemask(), bin);
        if (threadIdx.x % 32 == __ffs(alike) - 1) atomicAdd(&mine[bin], static_cast<u64>(__popc(alike)));
      }
    };
    u64 next = low;
    if (tensor.type == FLOAT32 && tensor.address % 16 == 0) {
      const uint4* fours = reinterpret_cast<const uint4*>(tensor.address);
      const u64 stop = high / 4;
      u64 i = low / 4 + threadIdx.x;
      for (; i + blockDim.x < stop; i += 2 * blockDim.x) {
        // Two loads under way at once, past the cache: nothing is read twice.
        const uint4 v = __ldcs(&fours[i]), w = __ldcs(&fours[i + blockDim.x]);
        put(v.x), put(v.y), put(v.z), put(v.w);
        put(w.x), put(w.y), put(w.z), put(w.w);
      }
      if (i < stop) {
        const uint4 v = __ldcs(&fours[i]);
        put(v.x), put(v.y), put(v.z), put(v.w);
      }
      next = stop * 4;
    }
    for (u64 i = next + threadIdx.x; i < high; i += blockDim.x) put(magnitude(tensor, i));

    for (int lane = 16; lane; lane /= 2) {
      zeros += __shfl_down_sync(0xffffffffu, zeros, lane);
      top = max(top, __shfl_down_sync(0xffffffffu, top, lane));
    }
    if (threadIdx.x % 32 == 0) {
      if (zeros) atomicAdd(mine, static_cast<u64>(zeros));
      if (top) atomicMax(&tops[tensor.slot], top);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < WINDOW; i += blockDim.x) {
      if (bins[i]) atomicAdd(&mine[base + i], static_cast<u64>(bins[i]));
    }
    __syncthreads();
  }
}
