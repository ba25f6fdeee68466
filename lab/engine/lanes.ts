// Small words for four float32 lanes, used by all rooms.

/** The float32 at p, in all four lanes. */
// @ts-ignore: decorator
@inline export function spread(p: usize): v128 {
  return v128.load32_splat(p);
}

/** a + w * x, rounded after the product and after the sum. */
// @ts-ignore: decorator
@inline export function plus_product(a: v128, w: v128, x: v128): v128 {
  return f32x4.add(a, f32x4.mul(w, x));
}

/** The sum of the four lanes, always in the order (0 + 1) + (2 + 3). */
// @ts-ignore: decorator
@inline export function across(v: v128): f32 {
  const first = f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1);
  return first + (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3));
}
