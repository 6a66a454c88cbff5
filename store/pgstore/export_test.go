package pgstore

const (
	StateLanes = stateLanes
	MaxWrites  = maxWrites
)

// Waiting is how many changes of state wait for a transaction to share.
func (s *Store) Waiting() (n int) {
	for _, g := range []*grouper{&s.state, &s.mixed} {
		g.mu.Lock()
		n += len(g.waiting)
		g.mu.Unlock()
	}
	return n
}

// UnderWay is how many changes have a turn, without those of state alone: they write or wait for a transaction.
func (s *Store) UnderWay() int { return len(s.turns) }
