package apitoken

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// The feed is what validators in other processes follow. It is served from this process's memory: however many follow,
// the store is asked by one. It is made when somebody asks for it first.

// feedLog holds the rules in the order of their positions, hashed under the feed's key.
type feedLog struct {
	mu      sync.Mutex // guards all below
	on      bool
	root    [4]byte // under whose key it was hashed
	key     []byte
	entries []feedEntry
	keys    []changedKey // API keys that changed
	since   int64        // API-key changes are known from this position on
}

type feedEntry struct {
	pos int64
	RevocationEntry
}

type changedKey struct {
	pos  int64
	hash [16]byte
}

const (
	maxChangedKeys = 1 << 14
	maxFeedPage    = 10000
)

// applyRule appends a rule that the store has.
func (l *feedLog) applyRule(s *core, r store.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.on {
		return nil
	}
	return l.add(s, r)
}

// add keeps the order: a record whose place was passed is here already. It comes again where a reading of several pages was cut,
// which begins anew.
func (l *feedLog) add(s *core, r store.Record) error {
	if n := len(l.entries); n > 0 && r.Pos.N <= l.entries[n-1].pos {
		return nil
	}
	x, err := rules.ReadRule(r)
	if err != nil { // set aside
		x = widest(r)
	}
	e := feedEntry{pos: r.Pos.N, RevocationEntry: travels(x.Hashed(l.key, s.ns))}
	e.Expires = r.Expires
	if x.Q < e.pos {
		l.finish(x.Q, &e)
	}
	l.entries = append(l.entries, e)
	return nil
}

// finish gives the entry of a record that was rewritten, as now, its end: without one it would stay for ever. It is served until
// then beside the new one, as a reader whose page ends before that would miss the rule. A rule keeps the position q that it was
// written at; one that was put back into a store has had a later one since.
func (l *feedLog) finish(q int64, now *feedEntry) {
	first, _ := slices.BinarySearchFunc(l.entries, q, func(e feedEntry, n int64) int { return cmp.Compare(e.pos, n) })
	same := func(e feedEntry) bool {
		return e.Class == now.Class && e.Kind == now.Kind && e.Hash == now.Hash && e.Value == now.Value && e.At == now.At
	}
	if i := slices.IndexFunc(l.entries[first:], same); i >= 0 {
		l.entries[first+i].Expires = now.Expires
	}
}

// applyKey notes that an API key changed: answers about it that others keep are void.
func (l *feedLog) applyKey(s *core, r store.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.on {
		return
	}
	if len(l.keys) == maxChangedKeys {
		l.since = l.keys[maxChangedKeys/2-1].pos
		l.keys = append(l.keys[:0], l.keys[maxChangedKeys/2:]...)
	}
	l.keys = append(l.keys, changedKey{r.Pos.N, rules.HashTarget(l.key, s.ns, rules.TargetToken, "", r.ID, "")})
}

func (l *feedLog) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.on, l.entries, l.keys = false, nil, nil
}

// load fills the log from the store. The caller has the state's turn, so that no record comes in meanwhile.
func (l *feedLog) load(ctx context.Context, s *core, root [4]byte, key []byte) error {
	l.mu.Lock()
	if l.on && l.root == root {
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	at := s.state.Position()
	fresh := feedLog{root: root, key: key, since: at.N}
	var from store.Position
	for {
		v, err := s.st.Follow(ctx, from, []store.Kind{store.KindRule}, follow.Page)
		if err != nil {
			return err
		}
		for _, r := range v.Records {
			if r.Pos.N > at.N {
				continue // comes by the state's own following
			}
			if err := fresh.add(s, r); err != nil {
				return err
			}
		}
		if from = v.Next; !v.More {
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.on, l.root, l.key, l.entries, l.keys, l.since = true, root, key, fresh.entries, nil, at.N
	return nil
}

// sweep forgets rules that no living token can meet any more.
func (l *feedLog) sweep(before time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ms := before.UnixMilli()
	l.entries = slices.DeleteFunc(l.entries, func(e feedEntry) bool { return e.Expires != 0 && e.Expires < ms })
}

// Revocations implements [RevocationSource] from memory: the rules behind a position, and what a validator without a
// store needs besides. At most max entries (zero: 10,000) in one answer.
func (s *Service) Revocations(ctx context.Context, after store.Position, max int) (RevocationView, error) {
	if max <= 0 || max > maxFeedPage {
		max = maxFeedPage
	}
	if err := s.loadFeed(ctx); err != nil {
		return RevocationView{}, unavailable(err, "read the rules")
	}
	w := s.trust.look()
	age := s.trust.freshness(w, s.now()).Age
	l := &s.feed
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.on:
		return RevocationView{}, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the store's history changed just now"}
	case after != (store.Position{}) && after.History != w.Pos.History:
		return RevocationView{}, store.ErrDiverged
	}
	v := RevocationView{Key: bytes.Clone(l.key), Namespace: s.ns, Age: age, MaxLifetime: s.longest.Load().access, Next: w.Pos, KeySet: s.SigningKeys.ring.Digest(), DropOpaque: after.N < l.since}
	// Entries are in order of position: the first one behind after.
	i, _ := slices.BinarySearchFunc(l.entries, after.N+1, func(e feedEntry, n int64) int { return cmp.Compare(e.pos, n) })
	for ; i < len(l.entries) && l.entries[i].pos <= w.Pos.N; i++ {
		if len(v.Rules) == max {
			v.More, v.Next.N = true, l.entries[i-1].pos
			break
		}
		v.Rules = append(v.Rules, l.entries[i].RevocationEntry)
	}
	for _, k := range l.keys {
		if k.pos > after.N && k.pos <= v.Next.N {
			v.Changed = append(v.Changed, k.hash)
		}
	}
	s.SigningKeys.ring.EachKid(s.now(), func(kid, state string) {
		if state == "compromised" {
			v.Compromised = append(v.Compromised, kid)
		}
	})
	slices.Sort(v.Compromised)
	v.Prefix = s.cfg.Prefix
	s.SigningKeys.ring.EachMAC(keyring.APIKeyTag, func(kid [4]byte, key []byte) {
		v.APIKeyTags = append(v.APIKeyTags, APIKeyTag{kid, bytes.Clone(key)})
	})
	slices.SortFunc(v.APIKeyTags, func(a, b APIKeyTag) int { return bytes.Compare(a.KID[:], b.KID[:]) })
	return v, nil
}

// loadFeed makes the log if it is not there, or was hashed under a key that is no longer current.
func (s *Service) loadFeed(ctx context.Context) error {
	root, _ := s.SigningKeys.ring.MAC(keyring.Feed)
	s.feed.mu.Lock()
	ok := s.feed.on && s.feed.root == root
	s.feed.mu.Unlock()
	if ok {
		return nil
	}
	if err := s.state.Refresh(ctx); err != nil {
		return err
	}
	release, err := s.state.Hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	root, key := s.SigningKeys.ring.MAC(keyring.Feed)
	return s.feed.load(ctx, s.core, root, key)
}

// Wait returns when this process's view of the state is not at p, or ctx ends. For long polls of [Service.Revocations].
func (s *Service) Wait(ctx context.Context, p store.Position) error {
	for {
		moved := s.state.Moved()
		if s.state.Position() != p {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return unavailable(s.ctx.Err(), "closed")
		}
	}
}

// travels is a rule in its public form.
func travels(x rules.HashedRule) RevocationEntry {
	return RevocationEntry{Class: uint8(x.Class), Kind: x.Kind, Hash: x.Hash, Value: x.Value, At: x.At, Expires: x.Expires}
}
