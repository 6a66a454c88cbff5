package oauthhttp

import "time"

// SetReadTime shortens the time in which a body must arrive.
func (h *Handler) SetReadTime(d time.Duration) { h.readTime = d }
