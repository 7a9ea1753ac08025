"""Instructions as the compilers of TPUs and GPUs write them: products, kernels, bytes, and what runs beside a
collective."""

import math

import pytest

from transformer.accelerators.compiling import _gigabytes
from transformer.accelerators.program import Op, read


def _program(*lines: str, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule jit_step, is_scheduled=true\n{before}\nENTRY %main (x: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def _op(text: str, name: str) -> Op:
    (found,) = (op for op in read(text, 1).ops if op.name == name)
    return found


# --- TPU


@pytest.mark.parametrize(
    ("left", "right", "result", "attributes", "flops"),
    [
        ("[2048,512]", "[512,4096]", "[2048,4096]", "dim_labels=bf_io->bf", 2 * 2048 * 512 * 4096),
        ("[8,1024,768]", "[768,768,1]", "[8,1024,768]", "window={size=1}, dim_labels=0bf_io0->0bf", 2 * 8192 * 768**2),
        (
            "[8,12,256,64]",
            "[8,12,256,64]",
            "[8,12,256,256]",
            "window={size=8x12 stride=7x11 lhs_dilate=8x12}, dim_labels=01bf_01oi->01bf",
            2 * 8 * 12 * 256 * 256 * 64,
        ),
        (
            "[8,12,256,64]",
            "[8,12,256,256]",
            "[8,12,256,64]",
            "window={size=8x12 stride=8x12 pad=7_7x11_11 lhs_dilate=7x11 rhs_reversal=1x1}, dim_labels=01fb_01oi->01fb",
            2 * 8 * 12 * 256 * 256 * 64,
        ),
    ],
)
def test_a_tpu_writes_products_as_convolutions(
    left: str, right: str, result: str, attributes: str, flops: float
) -> None:
    """Batched ones by strides and dilations between which a batch meets only itself."""
    text = _program(
        f"%left = bf16{left} parameter(0)",
        f"%right = bf16{right} parameter(1)",
        f"ROOT %out = bf16{result} convolution(%left, %right), {attributes}",
    )
    assert _op(text, "out").flops == flops


def test_a_window_on_padding_multiplies_nothing() -> None:
    """Two of the three outputs at the edges see two of the kernel's three positions."""
    text = _program(
        "%left = f32[1,5,7] parameter(0)",
        "%right = f32[3,7,11] parameter(1)",
        "ROOT %out = f32[1,5,11] convolution(%left, %right), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
    )
    assert _op(text, "out").flops == 2 * (3 * 3 + 2 * 2) * 7 * 11


SPLASH = (
    "%q = bf16[2,6,1024,128]{3,2,1,0:T(8,128)(2,1)} parameter(0)",
    "%k = bf16[2,6,1024,128]{3,2,1,0:T(8,128)(2,1)} parameter(1)",
    "%v = bf16[2,6,1024,128]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(2)",
    "%splash_mha_fwd_residuals.1 = (f32[2,6,1024,128]{3,2,1,0:T(8,128)S(1)}, f32[2,6,1024]{2,1,0}) custom-call(%q, "
    '%k, %v), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={',
    '"kind":"splash"',
    '}}, metadata={op_name="jit(f)/decoder/layer_0/pallas_call"}',
    "ROOT %again = bf16[2,6,1024,128]{3,2,1,0} copy(%q)",
)


def test_a_kernel_of_pallas_counts_what_is_not_masked() -> None:
    """Its attributes go over several lines; what lies on the chip, written S(1), is not moved from memory."""
    text = _program(*SPLASH)
    program = read(text, 1, seen=lambda source: 0.25 if "decoder/" in source else 1.0)
    assert dict(program.kernels) == {"splash_mha_fwd_residuals": 1}
    (found,) = (op for op in program.ops if op.flops)
    assert found.flops == 0.25 * 2 * 2 * 6 * 1024 * 1024 * (128 + 128)
    assert found.moved == 2 * (2 * 2 * 6 * 1024 * 128) + 4 * 2 * 6 * 1024
    assert _op(text, "again").moved == 2 * (2 * 2 * 6 * 1024 * 128)


def test_what_only_arranges_memory_is_no_kernel() -> None:
    text = _program(
        "%x = f32[64]{0} parameter(0)",
        '%a = f32[64]{0} custom-call(), custom_call_target="AllocateBuffer"',
        'ROOT %b = f32[128]{0} custom-call(%x, %a), custom_call_target="ConcatBitcast"',
    )
    program = read(text, 1)
    assert (program.ops, dict(program.kernels)) == ((), {})


def _gathered(meanwhile: str) -> str:
    """An all-gather that a TPU fuses: its start, its middle beside a product, and its end, all of channel 95."""
    gather = (
        "all-gather(%p), channel_id=95, replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], "
        "device_ids=([4,2]T(1,0)) {'axis_0'}, dimensions={0}"
    )
    parts = [
        f"%part.{name} (p: f32[3,7]) -> f32[12,7] {{\n  %p = f32[3,7] parameter(0)\n"
        f"  ROOT %gather.{name} = f32[12,7] {gather}\n}}\n"
        for name in ("start", "middle", "end")
    ]
    return _program(
        "%x = f32[3,7] parameter(0)",
        "%begun = f32[12,7] fusion(%x), kind=kCustom, calls=%part.start",
        *([meanwhile] if meanwhile else []),
        "ROOT %ended = f32[12,7] fusion(%begun), kind=kCustom, calls=%part.end",
        before="".join(parts),
    )


@pytest.mark.parametrize(
    ("meanwhile", "overlaps"),
    [
        ("", False),
        ("%view = f32[21] bitcast(%x)", False),
        ("%other = f32[3,7] exponential(%x)", True),
        ("%other = f32[12,7] fusion(%begun), kind=kCustom, calls=%part.middle", True),
    ],
)
def test_a_fused_collective_counts_once(meanwhile: str, overlaps: bool) -> None:
    (found,) = read(_gathered(meanwhile), 8).collectives
    assert (found.kind, found.result_bytes, found.devices, found.times) == ("all-gather", 4 * 12 * 7, 4, 1)
    assert found.overlaps == overlaps
    assert found.sent_bytes == 4 * 12 * 7 * 3 / 4


# --- GPU


@pytest.mark.parametrize(
    ("between", "overlaps"),
    [("%view = f32[24] bitcast(%x)", False), ("%other = f32[3072]{0} negate(%x)", True)],
)
def test_a_collective_overlaps_with_what_is_between_its_start_and_end(between: str, overlaps: bool) -> None:
    text = _program(
        "%x = f32[3072]{0} parameter(0)",
        "%start = ((f32[3072]{0}), f32[3072]{0}) all-reduce-start(%x), channel_id=5, "
        "replica_groups=mesh['data'=8,'fsdp'=1] {'data'}, to_apply=%add",
        between,
        "ROOT %end = f32[3072]{0} all-reduce-done(%start)",
    )
    (found,) = read(text, 8).collectives
    assert (found.kind, found.devices, found.overlaps) == ("all-reduce", 8, overlaps)
    assert found.sent_bytes == 2 * 4 * 3072 * 7 / 8


@pytest.mark.parametrize(
    ("mask", "scores"),
    [
        ('"mask_type": "NO_MASK"', 256 * 256),
        ('"mask_type": "CAUSAL"', 256 * 257 // 2),
        ('"mask_type": "CAUSAL", "sliding_window_length": 33', sum(min(at + 1, 33) for at in range(256))),
    ],
)
@pytest.mark.parametrize(("direction", "products"), [("", 2), ("Backward", 5)])
def test_attention_of_cudnn_counts_by_its_mask(mask: str, scores: int, direction: str, products: int) -> None:
    text = _program(
        "%q = bf16[2,256,6,64]{3,2,1,0} parameter(0)",
        "%k = bf16[2,256,3,64]{3,2,1,0} parameter(1)",
        "%v = bf16[2,256,3,64]{3,2,1,0} parameter(2)",
        "ROOT %attention.5 = (bf16[2,6,256,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %v), "
        f'custom_call_target="__cudnn$fmhaSoftmax{direction}", backend_config={{"cudnn_fmha_backend_config": '
        f'{{"intermediate_tensor_shape": {{"dimensions": ["2", "6", "256", "256"]}}, {mask}}}}}',
    )
    assert _op(text, "attention.5").flops == 2 * 2 * 6 * scores * products * 64
    assert dict(read(text, 1).kernels) == {f"__cudnn$fmhaSoftmax{direction}": 1}


def test_a_product_of_cublas_counts_by_its_shapes() -> None:
    text = _program(
        "%a = f32[67,31]{1,0} parameter(0)",
        "%b = f32[31,53]{1,0} parameter(1)",
        "ROOT %gemm.1 = (f32[67,53]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="
        '"__cublas$gemm", backend_config={"gemm_backend_config": {"dot_dimension_numbers": '
        '{"lhs_contracting_dimensions": ["1"]}}}',
    )
    found = _op(text, "gemm.1")
    assert (found.flops, found.single) == (2 * 67 * 31 * 53, 2 * 67 * 31 * 53)


# --- Bytes


def test_a_slice_reads_its_part_and_an_update_writes_its_part() -> None:
    text = _program(
        "%table = f32[1000,7]{1,0} parameter(0)",
        "%at = s32[] parameter(1)",
        "%part = f32[3,7]{1,0} dynamic-slice(%table, %at, %at), dynamic_slice_sizes={3,7}",
        "ROOT %changed = f32[1000,7]{1,0} dynamic-update-slice(%table, %part, %at, %at)",
    )
    assert _op(text, "part").moved == pytest.approx(2 * 4 * 3 * 7, abs=8)  # and two indices
    assert _op(text, "changed").moved == pytest.approx(2 * 4 * 3 * 7, abs=8)


def test_a_fusion_reads_as_much_as_is_used_in_it() -> None:
    inner = (
        "%fused (a: f32[1000,7], b: f32[3,7]) -> f32[3,7] {\n  %a = f32[1000,7] parameter(0)\n"
        "  %b = f32[3,7] parameter(1)\n  %rows = f32[3,7] slice(%a), slice={[0:3], [0:7]}\n"
        "  ROOT %sum = f32[3,7] add(%rows, %b)\n}\n"
    )
    text = _program(
        "%a.1 = f32[1000,7] parameter(0)",
        "%b.1 = f32[3,7] parameter(1)",
        "ROOT %out = f32[3,7] fusion(%a.1, %b.1), kind=kLoop, calls=%fused",
        before=inner,
    )
    assert _op(text, "out").moved == 3 * 4 * 3 * 7


# --- Errors of the compilers


def test_a_compiler_that_finds_too_little_memory_says_how_much_is_needed() -> None:
    used = _gigabytes("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 93.80G of 15.75G hbm.")
    assert used == pytest.approx((93.8 * 2**30 / 1e9, 15.75 * 2**30 / 1e9))
    mixed = _gigabytes("RESOURCE_EXHAUSTED: temporaries (26.79G) exceeds available HBM (512.00M)")
    assert mixed == pytest.approx((26.79 * 2**30 / 1e9, 512 * 2**20 / 1e9))
    assert math.isnan(_gigabytes("RESOURCE_EXHAUSTED")[0])
