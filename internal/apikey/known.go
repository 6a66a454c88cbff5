// The cache of known API keys: found by a presented text, dropped when their record changes.

package apikey

import (
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/flightcache"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

const (
	keysPerShard   = 2048 // of 64: about 130,000 keys in all, of some 700 bytes each
	absentPerShard = 256
	absentFor      = 5 * time.Second
	readTimeout    = 2 * time.Second
	rehashTimeout  = 2 * time.Second
)

// Key is a key that this process has read. T is what the root makes of its record.
type Key[T any] struct {
	Rule  *rules.Subject // what rules see of it
	Limit usage.Limit
	Use   *usage.Counter
	End   int64         // when it ends or was disabled, Unix ms; 0: never
	Ends  *atomic.Int64 // End, shared by all Tokens of the key and moved when its record changes
	Token T

	hash    [32]byte
	rate    Rate
	meter   *usage.Meter
	version atomic.Uint64            // of the rules
	old     *OldHash                 // of an imported key
	proved  atomic.Pointer[[32]byte] // our hash of the text that the host's hash was found to be of
	tag     atomic.Pointer[keyTag]   // of the text that was verified: a known key then needs no MAC
}

// keyTag is what the hash in a key's record does not cover of its text.
type keyTag struct {
	kid [4]byte
	tag [16]byte
}

// shown reports whether key is, in every byte, the text that was verified before.
func (k *Key[T]) shown(key *opaque.Key, hash *[32]byte) bool {
	known := k.tag.Load()
	return known != nil && subtle.ConstantTimeCompare(hash[:], k.hash[:])&subtle.ConstantTimeCompare(key.Tag[:], known.tag[:])&
		subtle.ConstantTimeCompare(key.KID[:], known.kid[:]) == 1
}

// Hit returns the class of a rule that matches the key; empty: there is none. It looks only when the rules have changed.
func (k *Key[T]) Hit(b *rules.Book) string {
	version := b.Version.Load()
	if k.version.Load() == version {
		return ""
	}
	if rule := b.Hit(k.Rule); rule != "" {
		return rule
	}
	k.version.Store(version)
	return ""
}

// Ended reports whether the key has ended at now, or is disabled.
func (k *Key[T]) Ended(now time.Time) bool { return k.End != 0 && now.UnixMilli() >= k.End }

// Config is what a Cache needs of the service around it.
type Config[T any] struct {
	Context   context.Context // ends the reads that callers share
	Writer    *commit.Writer
	Now       func() time.Time
	Log       *slog.Logger
	Namespace func() string
	Uses      *usage.Log
	Forms     *Forms
	// Made reports whether the tag of a key of ours is good. It reads no record.
	Made func(context.Context, *opaque.Key) (bool, error)
	// Token makes what callers get of a key that was read.
	Token func(*Key[T], *Record) T
	// Outdated reports whether something else than the record has changed that Token looked at.
	Outdated func(T) bool
	// Change rewrites a record, with an event that says how.
	Change func(ctx context.Context, id, how string, f func(*Record) error) error
}

// Cache holds the keys that this process has read. Use NewCache.
type Cache[T any] struct {
	c    Config[T]
	keys *flightcache.Cache[opaque.ID, *Key[T]]
}

// NewCache returns an empty Cache.
func NewCache[T any](c Config[T]) *Cache[T] {
	return &Cache[T]{c, flightcache.New(flightcache.Config[opaque.ID, *Key[T]]{Shard: func(id opaque.ID) byte { return id[15] },
		Values: keysPerShard, Absents: absentPerShard, Repeat: 3})}
}

// Close waits for the reads under way. What is known still answers.
func (c *Cache[T]) Close() { c.keys.Close() }

// Reset forgets all keys.
func (c *Cache[T]) Reset() { c.keys.DropAll(nil) }

// Apply replaces what is known of a key whose record has changed; one that was never presented is read when it is.
func (c *Cache[T]) Apply(r store.Record) error {
	id, err := opaque.ParseID(r.ID)
	if err != nil {
		return nil // not of our making: never presented
	}
	old, ok := c.keys.Changed(id)
	if !ok {
		return nil
	}
	k, err := c.key(r, old)
	if err == nil {
		c.keys.Replace(id, k)
	}
	return err
}

// SetAside makes a key whose record cannot be read be read again when it is presented, which says so.
func (c *Cache[T]) SetAside(r store.Record) {
	if id, err := opaque.ParseID(r.ID); err == nil {
		c.keys.Drop(id)
	}
}

// key is what a record says, with the counts and the tokens of the key as it was known before; nil: it was not.
func (c *Cache[T]) key(r store.Record, before *Key[T]) (*Key[T], error) {
	var rec Record
	if err := commit.Read(&Form, r, &rec); err != nil {
		return nil, err
	}
	k := &Key[T]{Rule: rec.Rule(r.ID), Limit: rec.Limit(r.ID), hash: rec.Hash, old: rec.Old, rate: rec.Rate, End: rec.End()}
	if d := rec.Disabled; d != 0 && (k.End == 0 || d < k.End) { // for as long as it is
		k.End = d
	}
	if before == nil {
		k.Use, k.meter, k.Ends = c.c.Uses.Counter(usage.APIKey, r.ID), usage.NewMeter(), new(atomic.Int64)
	} else {
		k.Use, k.meter, k.Ends = before.Use, before.meter, before.Ends
		if k.hash == before.hash {
			k.tag.Store(before.tag.Load())
		}
	}
	k.Token = c.c.Token(k, &rec)
	k.Ends.Store(k.End)
	return k, nil
}

// get returns a key that is known and still holds, else nil.
func (c *Cache[T]) get(id opaque.ID) *Key[T] {
	k, _ := c.keys.Get(id)
	if k != nil && c.c.Outdated(k.Token) {
		c.keys.Drop(id)
		return nil
	}
	return k
}

// load returns a key, and reads it when it is first presented, once however many callers ask. An ID that no key has is remembered
// for a moment. fault.InvalidToken: there is none.
func (c *Cache[T]) load(ctx context.Context, id opaque.ID) (*Key[T], error) {
	if k := c.get(id); k != nil {
		return k, nil
	}
	now := c.c.Now()
	k, err := c.keys.Load(ctx, id, now, func() (func() (*Key[T], error), error) {
		return func() (*Key[T], error) {
			ctx, cancel := context.WithTimeout(c.c.Context, readTimeout)
			defer cancel()
			r, err := c.c.Writer.Get(ctx, store.KindAPIKey, id.String())
			switch {
			case errors.Is(err, fault.NotFound):
				return nil, &flightcache.Absent{Err: fault.Fail(fault.InvalidToken, "no such API key"), Until: now.Add(absentFor)}
			case err != nil:
				return nil, err
			}
			return c.key(r, nil)
		}, nil
	})
	if known := (*fault.Error)(nil); err != nil && !errors.As(err, &known) {
		return nil, fault.NoAnswer(err, "read API key")
	}
	return k, err
}

// Find returns the key with a good secret that a text of our shape is, ended or not. A known key costs one hash and no I/O. failed
// is the step that did not, for Explain. fault.InvalidToken: it is no key of this service.
func (c *Cache[T]) Find(ctx context.Context, key *opaque.Key) (k *Key[T], failed string, err error) {
	hash := Hash(c.c.Namespace(), key)
	if k = c.get(key.ID); k != nil && k.shown(key, &hash) {
		return k, "", nil
	}
	return c.prove(ctx, *key, hash) // a copy, since the host's functions let it escape
}

// prove is Find for a text that was not verified before. Junk ends here, without a store read and in the same time whether its ID
// is a key's or not.
func (c *Cache[T]) prove(ctx context.Context, key opaque.Key, hash [32]byte) (k *Key[T], failed string, err error) {
	ours, err := c.c.Made(ctx, &key)
	switch {
	case err != nil:
		return nil, "lookup", err
	case !ours:
		return nil, "tag", fault.Fail(fault.InvalidToken, "an API key that this service did not make")
	}
	if k, err = c.load(ctx, key.ID); err != nil {
		return nil, "lookup", err
	}
	if subtle.ConstantTimeCompare(hash[:], k.hash[:]) != 1 {
		return nil, "secret", fault.Fail(fault.InvalidToken, "wrong secret")
	}
	k.tag.Store(&keyTag{key.KID, key.Tag})
	return k, "", nil
}

// FindImported returns the imported key that a text is, ended or not; nil: it is none. presented: by a caller, so that our hash takes
// the place of the host's. fault.Unavailable.
func (c *Cache[T]) FindImported(ctx context.Context, text string, presented bool) (*Key[T], error) {
	for _, name := range c.c.Forms.names {
		lookup, err := c.c.Forms.lookup(name, text)
		if err != nil {
			return nil, err
		}
		if lookup == "" {
			continue
		}
		for n := range maxSame {
			id := opaque.ImportedID(c.c.Namespace(), name, lookup, n)
			k, err := c.load(ctx, id)
			if errors.Is(err, fault.InvalidToken) { // none
				break
			}
			if err != nil {
				return nil, err
			}
			if fits, err := c.fits(ctx, k, id, text, presented); err != nil || fits {
				return k, err
			}
		}
	}
	return nil, nil
}

// fits reports whether a text is the imported key k.
func (c *Cache[T]) fits(ctx context.Context, k *Key[T], id opaque.ID, text string, presented bool) (bool, error) {
	if k.old == nil {
		return false, nil // one of ours, which names nothing that is imported
	}
	hash := opaque.Hash(labelImported, []byte(c.c.Namespace()), id[:], []byte(text))
	if k.old.Hash == "" {
		return subtle.ConstantTimeCompare(hash[:], k.hash[:]) == 1, nil
	}
	if p := k.proved.Load(); p != nil && subtle.ConstantTimeCompare(hash[:], p[:]) == 1 {
		return true, nil
	}
	fits, err := c.c.Forms.verify(ctx, k.old, text)
	if err != nil || !fits {
		return false, err
	}
	if ours := hash; presented && k.proved.CompareAndSwap(nil, &ours) { // once in this process: if it fails, the next process or the next start does it
		c.rehash(ctx, id, hash)
	}
	return true, nil
}

// rehash puts our hash in place of the host's. Whoever presented the key is not refused where that fails.
func (c *Cache[T]) rehash(ctx context.Context, id opaque.ID, hash [32]byte) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rehashTimeout)
	defer cancel()
	err := c.c.Change(ctx, id.String(), "hashed anew", func(rec *Record) error {
		if rec.Old == nil || rec.Old.Hash == "" {
			return errHashed
		}
		rec.Old.Hash, rec.Hash = "", hash
		return nil
	})
	if err != nil && !errors.Is(err, errHashed) {
		c.c.Log.Warn("apitoken: an imported API key keeps its old hash for now", "key", id.String(), "error", err)
	}
}

var errHashed = errors.New("hashed by another process")

// Known returns a key that this process has in memory; nil: it has none with this ID.
func (c *Cache[T]) Known(id string) *Key[T] {
	raw, err := opaque.ParseID(id)
	if err != nil {
		return nil
	}
	k, _ := c.keys.Get(raw)
	return k
}

// Consume takes one use of a key with limits. fault.Limited: none is left; fault.InvalidToken: there is no such key.
func (c *Cache[T]) Consume(ctx context.Context, id string) error {
	raw, err := opaque.ParseID(id)
	if err != nil {
		return fault.Fail(fault.InvalidToken, "no such API key")
	}
	k, err := c.load(ctx, raw)
	if err != nil {
		return err
	}
	if ok, wait := k.meter.Take(c.c.Now(), k.rate.Burst, k.rate.Per); !ok {
		return &fault.Error{Code: fault.Limited, RetryAfter: wait, Detail: "the API key's rate"}
	}
	if k.Limit.Max == 0 {
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, commit.Timeout) // all who wait for a store that hangs wait no longer than one
	defer cancel()
	return k.meter.Use(ctx, c.c.Uses, k.Limit)
}
