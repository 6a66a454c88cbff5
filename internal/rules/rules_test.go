package rules

import (
	"testing"
	"time"
)

// A book that keeps no times of rules refuses a token that has nothing but its time, and knows all others as before.
func TestUndatedBook(t *testing.T) {
	t.Parallel()
	for _, undated := range []bool{false, true} {
		b := NewBook(LocalKeyer())
		b.Undated = undated
		b.enter(Record{Target: Target{Kind: TargetSubject, ID: "alice"}, Q: 7, At: 1_800_000_000_000}, 0)
		later := time.Unix(1_800_000_001, 0)
		for _, x := range []struct {
			name    string
			subject Subject
			want    bool
		}{
			{"before it", Subject{Subject: "alice", Pos: at(6), Iat: later}, true},
			{"after it", Subject{Subject: "alice", Pos: at(7), Iat: later}, false},
			{"somebody else's", Subject{Subject: "bob", Pos: at(6), Iat: later}, false},
			{"without a position, after it", Subject{Subject: "alice", Wall: true, Iat: later}, undated},
			{"without a position, before it", Subject{Subject: "alice", Wall: true, Iat: later.Add(-time.Minute)}, true},
		} {
			if got := b.Hit(&x.subject) != ""; got != x.want {
				t.Errorf("undated %v, %s: refused %v, want %v", undated, x.name, got, x.want)
			}
		}
	}
}

func at(n int64) (p Positions) {
	p.Birth.N, p.View.N = n, n
	return p
}
