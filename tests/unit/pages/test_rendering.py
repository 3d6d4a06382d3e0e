# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Parts that all pages share, apart from their drawings."""

from anomalib_softpatch.pages.rendering import another_of_group


def test_each_image_of_a_group_is_compared_with_the_first_and_that_with_the_second() -> None:
    assert another_of_group([1, None, 2, 1, 3, 2, 1]) == {0: 3, 3: 0, 6: 0, 2: 5, 5: 2}
    assert another_of_group([None, 1]) == {}
