package pgstore

// Waiting is how many changes of state wait for a transaction to share.
func (s *Store) Waiting() (n int) {
	for _, g := range []*grouper{&s.state, &s.mixed} {
		g.mu.Lock()
		n += len(g.waiting)
		g.mu.Unlock()
	}
	return n
}

// UnderWay is how many changes are under way, those of state alone aside, those that wait for a transaction included.
func (s *Store) UnderWay() int { return len(s.turns) }
