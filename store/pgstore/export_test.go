package pgstore

// Waiting is how many changes of state wait for a transaction to share.
func (s *Store) Waiting() int {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	return len(s.state.waiting)
}

// UnderWay is how many changes without state are under way, those that wait for a transaction included.
func (s *Store) UnderWay() int { return len(s.turns) }
