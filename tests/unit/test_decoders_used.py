"""The decoder of each image, from logs as DALI would write them on a GPU."""

from penstock.pipeline.decoders_used import decoders_used

INFO = "\033[0;32m[INFO] \033[0m[nvimgcodec] "
# Lines of nvImageCodec 0.9, those of the hardware decoder put together from its strings and its source.
ON_A_GPU = "\n".join(
    INFO + line
    for line in (
        "Framework is registering decoder (id:nvjpeg_hw_decoder codec:jpeg)",
        "Framework is registering decoder (id:nvjpeg_cuda_decoder codec:jpeg)",
        "create nvjpeg_hw_decoder load_hint 0.65 load_hint_policy 2",
        "create nvjpeg_cuda_decoder load_hint 1 load_hint_policy 2",
        "ImageGenericDecoder::decode num_samples=6",
        "decode num_samples=6",
        "nvjpeg_hw_decoder selecting max batch size to 4 mini_bs=0",
        "3: nvjpeg_cuda_decoder process #2",
        "1: nvjpeg_cuda_decoder process #5",
        "1: libjpeg_turbo_decoder process #5",  # after nvJPEG failed
        "ImageGenericDecoder::decode num_samples=4",
        "decode num_samples=4",
        "nvjpeg_hw_decoder Using previous max batch size of 4",
        "nvjpeg_hw_decoder failed #3. Trying next: nvjpeg_cuda_decoder",
        "0: nvjpeg_cuda_decoder process #3",
        "Sample #1 can't be processed",
    )
)


def test_the_log_of_a_gpu() -> None:
    found = decoders_used(ON_A_GPU)
    assert found == {
        "nvjpeg_hw_decoder": 4 + 2,
        "nvjpeg_cuda_decoder": 1 + 1,
        "libjpeg_turbo_decoder": 1,
        "no decoder": 1,
    }


def test_a_log_without_images() -> None:
    assert not decoders_used("")
    assert not decoders_used(INFO + "Unregistering extension libtiff_extension version:0.9.0\n")
