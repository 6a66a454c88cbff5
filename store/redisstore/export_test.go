package redisstore

// Prefix is what a test needs to look at a store's keys.
func (s *Store) Prefix() string { return s.o.Prefix }
