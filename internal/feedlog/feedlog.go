// Package feedlog is the revocation feed as an issuer's process serves it, from memory: however many follow, the store is asked by
// one.
//
// It owns the rules in the order of their positions, hashed under the feed's key, and which API keys changed. It promises
// what package feed does: complete, in order, newest form only. It is empty until Load; from then on whoever follows the state hands
// it each record. Load holds the state's right to follow while it reads the store. The Log's mutex is a leaf; neither the store nor
// the key ring is asked under it. The root's follower calls the Apply methods and Reset, its Revocations Load and Page.
package feedlog

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Config is what a Log needs of the service around it.
type Config struct {
	Store     store.Store
	State     *follow.Follower // of the store
	Ring      *keyring.Ring
	Namespace func() string // part of the hashes
	Imports   bool          // API keys of another program's may be in the store, and are looked for
}

// Log holds the rules in the order of their positions, hashed under the feed's key. Make one with New.
type Log struct {
	c Config

	mu      sync.Mutex // guards all below
	on      bool
	root    [4]byte // under whose key it was hashed
	key     []byte
	entries []entry
	keys    []changedKey // API keys that changed
	since   int64        // API-key changes are known from this position on

	imported []importedKey // API keys of another program's, in the order of their positions
	known    map[[8]byte]struct{}
}

type importedKey struct {
	pos  int64
	hash [8]byte
}

type entry struct {
	pos int64
	feed.Entry
}

type changedKey struct {
	pos  int64
	hash [16]byte
}

const (
	maxChangedKeys = 1 << 14
	MaxPage        = 10000 // rules in one answer
	importsPerRule = 8     // imported API keys in one answer, for each rule that may be in it
)

// New returns an empty Log.
func New(c Config) *Log { return &Log{c: c} }

// ApplyRule appends a rule that the store has.
func (l *Log) ApplyRule(r store.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.on {
		return nil
	}
	return l.add(r)
}

// add keeps the order: a record whose place was passed is here already. It comes again where a reading of several pages was cut,
// which begins anew.
func (l *Log) add(r store.Record) error {
	if n := len(l.entries); n > 0 && r.Pos.N <= l.entries[n-1].pos {
		return nil
	}
	x, err := rules.ReadRule(r)
	if err != nil { // set aside
		x = rules.Widest(r)
	}
	e := entry{pos: r.Pos.N, Entry: x.Hashed(l.key, l.c.Namespace())}
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
func (l *Log) finish(q int64, now *entry) {
	first, _ := slices.BinarySearchFunc(l.entries, q, func(e entry, n int64) int { return cmp.Compare(e.pos, n) })
	same := func(e entry) bool {
		return e.Class == now.Class && e.Kind == now.Kind && e.Hash == now.Hash && e.Value == now.Value && e.At == now.At
	}
	if i := slices.IndexFunc(l.entries[first:], same); i >= 0 {
		l.entries[first+i].Expires = now.Expires
	}
}

// ApplyKey notes that an API key changed: answers about it that others keep are void.
func (l *Log) ApplyKey(r store.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.on {
		return
	}
	if len(l.keys) == maxChangedKeys {
		l.since = l.keys[maxChangedKeys/2-1].pos
		l.keys = append(l.keys[:0], l.keys[maxChangedKeys/2:]...)
	}
	h := l.hash(r)
	l.keys = append(l.keys, changedKey{r.Pos.N, h})
	l.imports(r, h)
}

// hash is that of an API key.
func (l *Log) hash(r store.Record) [16]byte {
	return rules.HashTarget(l.key, l.c.Namespace(), rules.TargetToken, "", r.ID, "")
}

// imports notes a record that is an imported API key's, at the place where it was seen first.
func (l *Log) imports(r store.Record, hash [16]byte) {
	h := [8]byte(hash[:8])
	if _, seen := l.known[h]; seen || !opaque.Imported(r.ID) {
		return
	}
	if l.known == nil {
		l.known = map[[8]byte]struct{}{}
	}
	l.known[h] = struct{}{}
	l.imported = append(l.imported, importedKey{r.Pos.N, h})
}

// Reset empties the log: the store has another history.
func (l *Log) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.on, l.entries, l.keys, l.imported, l.known = false, nil, nil, nil, nil
}

// Load fills the log from the store, if it is empty or was hashed under a key that is no longer current.
func (l *Log) Load(ctx context.Context) error {
	root, _ := l.c.Ring.MAC(keyring.Feed)
	if l.under(root) {
		return nil
	}
	if err := l.c.State.Refresh(ctx); err != nil {
		return err
	}
	release, err := l.c.State.Hold(ctx) // no record comes in meanwhile
	if err != nil {
		return err
	}
	defer release()
	root, key := l.c.Ring.MAC(keyring.Feed)
	if l.under(root) { // who held it before loaded the log
		return nil
	}

	at := l.c.State.Position()
	fresh := Log{c: l.c, root: root, key: key, since: at.N}
	kinds := []store.Kind{store.KindRule}
	if l.c.Imports {
		kinds = append(kinds, store.KindAPIKey)
	}
	var from store.Position
	for {
		v, err := l.c.Store.Follow(ctx, from, kinds, follow.Page)
		if err != nil {
			return err
		}
		for _, r := range v.Records {
			if r.Pos.N > at.N {
				continue // comes by the state's own following
			}
			if r.Kind == store.KindAPIKey {
				fresh.imports(r, fresh.hash(r))
				continue
			}
			if err := fresh.add(r); err != nil {
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
	l.imported, l.known = fresh.imported, fresh.known
	return nil
}

// Sweep forgets rules that no living token can meet any more.
func (l *Log) Sweep(before time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ms := before.UnixMilli()
	l.entries = slices.DeleteFunc(l.entries, func(e entry) bool { return e.Expires != 0 && e.Expires < ms })
}

// under reports whether the log is loaded, and hashed under the key of root.
func (l *Log) under(root [4]byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.on && l.root == root
}

// Page is an answer but for what the service's configuration says: the rules behind after and not behind head, at most most of them,
// the API keys that changed, and what the ring says of the signing keys and the tags of API keys. false: the log is empty.
func (l *Log) Page(after, head store.Position, most int) (feed.View, bool) {
	v, ok := l.page(after, head, most)
	if !ok {
		return v, false
	}

	// After the rules: a key that one of them ends is compromised by now.
	v.KeySet, v.Compromised = l.c.Ring.Digest(), l.c.Ring.Compromised()
	l.c.Ring.EachMAC(keyring.APIKeyTag, func(kid [4]byte, key []byte) {
		v.APIKeyTags = append(v.APIKeyTags, feed.Tag{KID: kid, Key: bytes.Clone(key)})
	})
	slices.SortFunc(v.APIKeyTags, func(a, b feed.Tag) int { return bytes.Compare(a.KID[:], b.KID[:]) })
	return v, true
}

// page is what the log itself knows of an answer.
func (l *Log) page(after, head store.Position, most int) (feed.View, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.on {
		return feed.View{}, false
	}
	v := feed.View{Key: slices.Clone(l.key), Namespace: l.c.Namespace(), Next: head, DropOpaque: after.N < l.since}
	k, _ := slices.BinarySearchFunc(l.imported, after.N+1, func(e importedKey, n int64) int { return cmp.Compare(e.pos, n) })
	for ; k < len(l.imported) && l.imported[k].pos <= head.N; k++ {
		if len(v.Imported) == importsPerRule*most {
			v.More, v.Next.N = true, l.imported[k-1].pos
			break
		}
		v.Imported = append(v.Imported, l.imported[k].hash)
	}
	// Entries are in order of position: the first one behind after.
	i, _ := slices.BinarySearchFunc(l.entries, after.N+1, func(e entry, n int64) int { return cmp.Compare(e.pos, n) })
	for ; i < len(l.entries) && l.entries[i].pos <= v.Next.N; i++ {
		if len(v.Rules) == most { // imported keys behind it come again: a follower has a set of them
			v.More, v.Next.N = true, l.entries[i-1].pos
			break
		}
		v.Rules = append(v.Rules, l.entries[i].Entry)
	}
	for _, k := range l.keys {
		if k.pos > after.N && k.pos <= v.Next.N {
			v.Changed = append(v.Changed, k.hash)
		}
	}
	return v, true
}
