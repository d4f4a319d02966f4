"""A token bucket: how much of something may be had in how much time.

Pure arithmetic on a clock that the caller reads (seconds, monotonic); no lock, no thread. It may be drawn on whenever it is not
in debt, for any amount, and then is in debt until the rate has paid for it. So a request larger than the bucket needs no special
case, and whoever comes next waits for what one other has drawn, and no longer.
"""

from __future__ import annotations


class Bucket:
    def __init__(self, rate_per_s: float, burst: float, now_s: float) -> None:
        """Full at first. In any t seconds no more is drawn than `burst + t * rate_per_s`, and the last amount."""
        if rate_per_s <= 0 or burst < 0:
            raise ValueError("a bucket has a rate above 0 and a burst that is not negative")
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._level = burst
        self._at_s = now_s

    def wait_s(self, now_s: float) -> float:
        """How long until something may be drawn; 0: now."""
        self._flow(now_s)
        return max(0.0, -self._level / self.rate_per_s)

    def draw(self, amount: float, now_s: float) -> None:
        """Takes `amount`, which is granted when `wait_s` is 0; a caller that may not wait takes it into a deeper debt."""
        self._flow(now_s)
        self._level -= amount

    def _flow(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)
        self._level = min(self.burst, self._level + passed_s * self.rate_per_s)
