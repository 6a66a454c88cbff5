package ledger

import "time"

// Figures are [Ledger.Status] as numbers, for the metrics of packages promapitoken and otelapitoken:
//
//	records       how many there are
//	signed        of them under a checkpoint
//	published     of them under a checkpoint that every publisher took; left out without publishers
//	waiting       seconds since which a record waits for a checkpoint; 0 while none does
//	read_age      seconds since the feed was last read to its end; left out before that
//	checked_age   seconds since the last watch that could be finished began; left out before that
//	failing       1 while Status.Err is set
//	found         1 if the watch found the log or its source changed: Status.Found
//
// It asks neither storage nor feed.
func (l *Ledger) Figures() map[string]float64 {
	s, now := l.Status(), l.cfg.Now()
	age := func(t time.Time) float64 { return max(now.Sub(t).Seconds(), 0) }
	flag := func(err error) float64 {
		if err != nil {
			return 1
		}
		return 0
	}
	m := map[string]float64{"records": float64(s.Size), "signed": float64(s.Signed), "waiting": 0, "failing": flag(s.Err), "found": flag(s.Found)}
	if !s.Waiting.IsZero() {
		m["waiting"] = age(s.Waiting)
	}
	if !s.Read.IsZero() {
		m["read_age"] = age(s.Read)
	}
	if !s.Checked.IsZero() {
		m["checked_age"] = age(s.Checked)
	}
	for i, p := range s.Publishers {
		if n := float64(p.Size); i == 0 || n < m["published"] {
			m["published"] = n
		}
	}
	return m
}
