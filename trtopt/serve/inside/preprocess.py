"""Preprocessing of an encoded image (PNG, JPEG, ...) into the input of the model, as its recipe says.

`RECIPE`, `OUTPUT`, `DTYPE`, `FORMATS` and `to_array` are written above. The functions are those that preprocessed the
calibration samples.
"""

import io

import triton_python_backend_utils as backend


class TritonPythonModel:
    """An instance of the step."""

    def execute(self, requests):
        """Return a response for each request: the preprocessed images of its encoded ones, [n, ...]."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Return the response to a request, or an error if it is not an image."""
        try:
            data = np.from_dlpack(request.inputs()[0])
            rows = [to_array(self.decode(row.tobytes()), RECIPE) for row in data.reshape(-1, data.shape[-1])]
            array = np.ascontiguousarray(np.stack(rows).astype(DTYPE))
        except Exception as error:
            failure = backend.TritonError(f"the image cannot be preprocessed: {error}")
            return backend.InferenceResponse(output_tensors=[], error=failure)
        return backend.InferenceResponse([backend.Tensor.from_dlpack(OUTPUT, array)])

    def decode(self, data):
        """Return the decoded image."""
        from PIL import Image

        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            return image.convert("RGBA") if "transparency" in image.info else image.copy()
