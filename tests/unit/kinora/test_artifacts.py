"""What a failed download tells gives no access to the object."""

import httpx
import pytest

from kinora.artifacts import _reason


def test_a_presigned_url_is_not_told() -> None:
    request = httpx.Request("GET", "http://store/adapter?X-Amz-Signature=5ec4e7")
    with pytest.raises(httpx.HTTPStatusError) as refused:
        httpx.Response(403, request=request).raise_for_status()
    assert "5ec4e7" in str(refused.value)
    assert _reason(refused.value) == "the object store answered 403"
