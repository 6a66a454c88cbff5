// API keys that another system made: known by its hashes until their first use, which gives them our form.

package apitoken

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/hook"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/store"
)

// Keys of another program are records like ours, whose IDs follow from what such a key is found by: a presented key leads to its
// record by one read, and a second import finds the first. Their text is whatever it was, so that nothing but a look at the store
// tells junk from a key, except for a Form's Prefix.

// ImportedKey is an API key of another program's, as [APIKeys.Import] takes it.
type ImportedKey struct {
	APIKeyRequest
	Form    string    // of Hash: a name in Config.KeyHashes
	Hash    string    // as the program kept it
	Lookup  string    // what the key is found by, where the Form does not make that of Hash: for keyhash.ByStart the key's first bytes
	Start   string    // the first characters, to be shown; empty: Lookup, if the program kept that
	Last    string    // the last ones, at most 8; empty: unknown
	Created time.Time // zero: now
}

// Format keeps the hash out of logs.
func (k ImportedKey) Format(f fmt.State, _ rune) { io.WriteString(f, k.LogValue().String()) }

// LogValue implements slog.LogValuer.
func (k ImportedKey) LogValue() slog.Value {
	return slog.GroupValue(slog.String("subject", k.Subject), slog.String("name", k.Name), slog.String("form", k.Form))
}

// oldHash is the hash of an imported key.
type oldHash struct {
	Form string `json:"form"`
	Hash string `json:"hash,omitempty"` // the host's; empty: the record's own hash is of the key, as it was presented first
	Sum  string `json:"sum"`            // of the host's hash: to know it again
}

const (
	labelOldKey  = "ak1o" // hashes of their text
	labelOldHash = "ak1s"

	maxSameLookup = 8       // imported keys that are found by the same
	maxOldKey     = 512     // bytes of the text of one
	maxOldHash    = 1 << 10 // bytes of its hash
	importBatch   = store.MaxPuts
	importAtOnce  = 8 // changes
	rehashTimeout = 2 * time.Second
)

// oldKeys reads the keys of Config.KeyHashes.
type oldKeys struct {
	forms map[string]keyhash.Form
	names []string      // sorted: those with the longest prefix first
	slow  chan struct{} // a place for each slow verification that runs
}

func newOldKeys(forms map[string]keyhash.Form) *oldKeys {
	o := &oldKeys{forms: maps.Clone(forms), slow: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	o.names = slices.SortedFunc(maps.Keys(forms), func(a, b string) int {
		if d := len(forms[b].Prefix) - len(forms[a].Prefix); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return o
}

func checkKeyHashes(forms map[string]keyhash.Form) error {
	for name, f := range forms {
		switch {
		case !nameShape.MatchString(name):
			return wrong("KeyHashes", "%q is no name", name)
		case f.Lookup == nil || f.Verify == nil:
			return wrong("KeyHashes", "%q has no Lookup or no Verify", name)
		case strings.HasPrefix(f.Prefix, "eyJ"):
			return wrong("KeyHashes", "%q: JWTs begin with eyJ", name)
		}
	}
	return nil
}

// recognize reports whether a text may be a key of one of the forms: what looks like a JWT is none, unless its prefix says so.
func (o *oldKeys) recognize(key string) bool {
	if o == nil || len(key) > maxOldKey {
		return false
	}
	return slices.ContainsFunc(o.names, func(name string) bool { return o.may(name, key) })
}

func (o *oldKeys) may(name, key string) bool {
	prefix := o.forms[name].Prefix
	return strings.HasPrefix(key, prefix) && (prefix != "" || !strings.HasPrefix(key, "eyJ"))
}

// lookup is what key is found by in a form, empty for none.
func (o *oldKeys) lookup(name, key string) (lookup string, err error) {
	defer contain(&err)
	if !o.may(name, key) {
		return "", nil
	}
	return o.forms[name].Lookup(key), nil
}

// verify calls the host's Verify. ErrUnavailable: it panicked, or too many slow ones run.
func (o *oldKeys) verify(ctx context.Context, old *oldHash, key string) (ok bool, err error) {
	defer contain(&err)
	f, known := o.forms[old.Form]
	if !known {
		return false, nil
	}
	if f.Slow {
		ctx, cancel := context.WithTimeout(ctx, keyReadTimeout)
		defer cancel()
		select {
		case o.slow <- struct{}{}:
			defer func() { <-o.slow }()
		case <-ctx.Done():
			return false, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "too many imported API keys are checked at once", Cause: ctx.Err()}
		}
	}
	return f.Verify(key, old.Hash), nil
}

// contain makes an error of a panic in a Form.
func contain(err *error) {
	if p := recover(); p != nil {
		*err = unavailable(hook.Panicked(p), "Config.KeyHashes")
	}
}

// importedID is the ID of the nth key that a form finds by lookup.
func (s *core) importedID(form, lookup string, n int) opaque.ID {
	return opaque.ImportedID(s.ns, form, lookup, n)
}

func (s *core) hashOldKey(id opaque.ID, key string) [32]byte {
	return opaque.Hash(labelOldKey, []byte(s.ns), id[:], []byte(key))
}

// Import takes over API keys that another program made: whoever has one goes on with it, in every process with the store. The
// program's hash of a key is kept until the key is first presented, and then one of ours. keys that were imported before are passed
// over, so that it may be called again after an error; imported counts the others. It stops at the first key that can't be taken,
// with all before it written, mostly with some behind it.
//
// ErrInvalidRequest: what is wrong with a key, and which one. ErrLimited: its subject has Limits.APIKeysPerSubject already.
// ErrDenied: in a view made by For.
//
// An imported key is an API key like others, for rules, limits and lists. A rotation makes it one of ours. A process that validates
// without the store, by package remote, takes it too where its own KeyHashes name the form.
func (k *APIKeys) Import(ctx context.Context, keys iter.Seq[ImportedKey]) (imported int, err error) {
	defer func() { k.denied(ctx, err); k.tell(&err) }()
	if k.view {
		return 0, fail(ErrDenied, "only the host imports API keys")
	}
	if err := k.s.audit.ready(); err != nil {
		return 0, err
	}
	next, stop := iter.Pull(keys)
	defer stop()
	for at := 0; ; {
		var batch []*imports
		var bad error
		for len(batch) < importBatch*importAtOnce {
			x, ok := next()
			if !ok {
				break
			}
			p, err := k.planImport(&x)
			if err != nil {
				bad = &Error{Code: ErrInvalidRequest, Detail: fmt.Sprintf("imported key %d: %s", at, detailOf(asError(err, "import"))), Cause: err}
				break
			}
			batch = append(batch, p)
			at++
		}
		n, err := k.importBatch(ctx, batch)
		imported += n
		if err == nil {
			err = bad
		}
		if err != nil || len(batch) == 0 {
			return imported, err
		}
	}
}

// imports is one key that is about to be imported.
type imports struct {
	rec    *apiKeyRecord
	lookup string
}

func (k *APIKeys) planImport(x *ImportedKey) (*imports, error) {
	f, ok := k.old.form(x.Form)
	if !ok {
		return nil, fail(ErrInvalidRequest, "%q is no form of Config.KeyHashes", x.Form)
	}
	rec, err := k.plan(x.APIKeyRequest)
	if err != nil {
		return nil, err
	}
	kept, lookup := x.Hash, ""
	if f.Read != nil {
		if kept, lookup, err = f.Read(x.Hash); err != nil {
			return nil, &Error{Code: ErrInvalidRequest, Detail: "hash: " + err.Error(), Cause: err}
		}
	}
	start := x.Start
	if lookup == "" {
		if lookup = x.Lookup; start == "" {
			start = lookup
		}
	}
	now := k.s.now()
	created := x.Created
	if created.IsZero() || created.After(now) {
		created = now
	}
	switch {
	case kept == "" || len(kept) > maxOldHash || !text.PlainText(kept):
		return nil, fail(ErrInvalidRequest, "a hash has 1 to %d bytes of text", maxOldHash)
	case lookup == "" || len(lookup) > maxOldKey:
		return nil, fail(ErrInvalidRequest, "what the key is found by is missing, or over %d bytes", maxOldKey)
	case len(start) > 64 || !text.PlainText(start) || len(x.Last) > 8 || !text.PlainText(x.Last):
		return nil, fail(ErrInvalidRequest, "Start has at most 64 bytes, Last 8, without control characters")
	case created.UnixMilli() < 0:
		return nil, fail(ErrInvalidRequest, "Created is before 1970")
	}
	rec.Created, rec.Start, rec.Last = created.UnixMilli(), start, x.Last
	sum := opaque.Hash(labelOldHash, []byte(k.s.ns), []byte(x.Form), []byte(kept))
	rec.Old = &oldHash{Form: x.Form, Hash: kept, Sum: hex.EncodeToString(sum[:16])}
	return &imports{rec, lookup}, nil
}

func (o *oldKeys) form(name string) (keyhash.Form, bool) {
	if o == nil {
		return keyhash.Form{}, false
	}
	f, ok := o.forms[name]
	return f, ok
}

// importBatch writes keys, several in a change and several changes at once. What meets something that is there is written alone.
func (k *APIKeys) importBatch(ctx context.Context, batch []*imports) (imported int, err error) {
	m := k.s.begin(ctx)
	var alone []*imports
	var groups [][]*imports
	seen := map[opaque.ID]bool{}
	var group []*imports
	for _, x := range batch {
		x.rec.Birth = m.login().at
		id := k.s.importedID(x.rec.Old.Form, x.lookup, 0)
		if seen[id] || k.quota.Limit > 0 {
			alone = append(alone, x)
			continue
		}
		seen[id] = true
		if group = append(group, x); len(group) == importBatch {
			groups, group = append(groups, group), nil
		}
	}
	if len(group) > 0 {
		groups = append(groups, group)
	}

	var mu sync.Mutex // guards imported, alone and err
	var wg sync.WaitGroup
	for _, group := range groups {
		wg.Go(func() {
			c := k.s.newChange()
			var e error
			for _, x := range group {
				if e = k.putImport(ctx, c, x, 0); e != nil {
					break
				}
			}
			if e == nil {
				_, e = k.s.commit(ctx, c)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case e == nil:
				imported += len(group)
			case errors.Is(e, store.ErrConflict):
				alone = append(alone, group...)
			case err == nil:
				err = e
			}
		})
	}
	wg.Wait()
	for _, x := range alone {
		if err != nil {
			break
		}
		var fresh bool
		if fresh, err = k.importOne(ctx, x); fresh {
			imported++
		}
	}
	return imported, err
}

func (k *APIKeys) putImport(ctx context.Context, c *change, x *imports, n int) error {
	id := k.s.importedID(x.rec.Old.Form, x.lookup, n).String()
	if err := x.rec.put(c, id, store.Version{}); err != nil {
		return err
	}
	c.event(ctx, Event{Type: event.APIKeyChanged, OK: true, Reason: "imported", Subject: x.rec.Subject, TokenID: id, Scopes: x.rec.Scopes})
	return nil
}

// importOne writes one key where no other is. fresh is false where it was imported before.
func (k *APIKeys) importOne(ctx context.Context, x *imports) (fresh bool, err error) {
	if k.quota.Limit > 0 {
		leave, err := k.quota.Turns.Enter(ctx, x.rec.Subject)
		if err != nil {
			return false, public(err)
		}
		defer leave()
	}
	for range refreshTries {
		n := 0
		for ; n < maxSameLookup; n++ {
			var there apiKeyRecord
			r, err := k.s.get(ctx, store.KindAPIKey, k.s.importedID(x.rec.Old.Form, x.lookup, n).String())
			if isNotFound(err) {
				break
			}
			if err == nil {
				err = read(&apiKeyForm, r, &there)
			}
			if err != nil {
				return false, err
			}
			if there.Old != nil && there.Old.Sum == x.rec.Old.Sum {
				return false, nil
			}
		}
		if n == maxSameLookup {
			return false, fail(ErrInvalidRequest, "%d imported keys are found by the same already: take more of a key to find it by", n)
		}
		count, err := k.room(ctx, x.rec.Subject)
		if err != nil {
			return false, err
		}
		c := k.s.newChange()
		if err := k.putImport(ctx, c, x, n); err != nil {
			return false, err
		}
		if count != nil {
			count.Add(k.s.importedID(x.rec.Old.Form, x.lookup, n).String(), c.Puts[0].Expires)
			if err := count.Put(&c.Change); err != nil {
				return false, public(err)
			}
		}
		if _, err = k.s.commit(ctx, c); !errors.Is(err, store.ErrConflict) {
			return err == nil, err
		}
	}
	return false, tryAgain("parallel imports")
}

// findOld returns the imported key that a text is, ended or not. nil: it is none. use: the caller presents it.
func (k *APIKeys) findOld(ctx context.Context, key string, use bool) (*knownKey, error) {
	for _, name := range k.old.names {
		lookup, err := k.old.lookup(name, key)
		if err != nil {
			return nil, err
		}
		if lookup == "" {
			continue
		}
		for n := range maxSameLookup {
			id := k.s.importedID(name, lookup, n)
			e, _ := k.keys.Get(id)
			if e == nil {
				if e, err = k.load(ctx, id); errors.Is(err, ErrInvalidToken) { // none
					break
				}
				if err != nil {
					return nil, err
				}
			}
			fits, err := k.fitsOld(ctx, e, id, key, use)
			if err != nil || fits {
				return e, err
			}
		}
	}
	return nil, nil
}

// fitsOld reports whether a text is the imported key e. At its first use the host's hash gives way to ours.
func (k *APIKeys) fitsOld(ctx context.Context, e *knownKey, id opaque.ID, key string, use bool) (bool, error) {
	if e.old == nil {
		return false, nil // one of ours, which names nothing that is imported
	}
	hash := k.s.hashOldKey(id, key)
	if e.old.Hash == "" {
		return subtle.ConstantTimeCompare(hash[:], e.hash[:]) == 1, nil
	}
	if p := e.proved.Load(); p != nil && subtle.ConstantTimeCompare(hash[:], p[:]) == 1 {
		return true, nil
	}
	fits, err := k.old.verify(ctx, e.old, key)
	if err != nil || !fits {
		return false, err
	}
	if use && e.proved.CompareAndSwap(nil, &hash) { // once in this process: if it fails, the next process or the next start does it
		k.rehash(ctx, id, hash)
	}
	return true, nil
}

// rehash puts our hash in place of the host's. Whoever presented the key is not refused where that fails.
func (k *APIKeys) rehash(ctx context.Context, id opaque.ID, hash [32]byte) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rehashTimeout)
	defer cancel()
	_, err := k.change(ctx, id.String(), "hashed anew", func(rec *apiKeyRecord) error {
		if rec.Old == nil || rec.Old.Hash == "" {
			return errHashed
		}
		rec.Old.Hash, rec.Hash = "", hash
		return nil
	})
	if err != nil && !errors.Is(err, errHashed) {
		k.s.log.Warn("apitoken: an imported API key keeps its old hash for now", "key", id.String(), "error", err)
	}
}

var errHashed = errors.New("hashed by another process")

// validateOld is validate for imported keys.
func (k *APIKeys) validateOld(ctx context.Context, c Credential, tr *trace) (Token, error) {
	if c.DPoP != "" {
		return Token{}, tr.no("binding", fail(ErrInvalidToken, "API keys are not bound to keys"))
	}
	e, err := k.findOld(ctx, c.Token, tr == nil)
	switch {
	case err != nil:
		return Token{}, tr.no("lookup", asError(err, "read API key"))
	case e == nil:
		return Token{}, tr.no("lookup", fail(ErrInvalidToken, "no such API key"))
	}
	tr.ok("secret", "an imported key")
	return k.decide(ctx, e, tr)
}

// identifyOld is the ID of an imported key, ended or not; empty: it is none.
func (k *APIKeys) identifyOld(ctx context.Context, key string) (string, error) {
	if !k.old.recognize(key) {
		return "", nil
	}
	e, err := k.findOld(ctx, key, false)
	if e == nil || err != nil {
		return "", err
	}
	return e.d.ID, nil
}

// find yields what in a text may be an imported key: what begins with a form's prefix, up to the first byte that no key has, and up
// to the first that is neither letter, digit, _ nor -.
func (o *oldKeys) find(in []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		if o == nil {
			return
		}
		body := string(in)
		for _, name := range o.names {
			prefix := o.forms[name].Prefix
			if prefix == "" {
				continue
			}
			for at := 0; ; {
				i := strings.Index(body[at:], prefix)
				if i < 0 {
					break
				}
				at += i
				end, short := at+len(prefix), 0
				for ; end < len(body) && end-at < maxOldKey; end++ {
					c := body[end]
					if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' {
						continue
					}
					if short == 0 {
						short = end
					}
					if !strings.ContainsRune(".~+/=:", rune(c)) {
						break
					}
				}
				if short != 0 && short != end && !yield(body[at:short]) {
					return
				}
				if !yield(body[at:end]) {
					return
				}
				at += len(prefix)
			}
		}
	}
}
