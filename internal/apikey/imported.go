// How a key of another program is recognized, and verified by the form of hash that the host names (Config.KeyHashes).

package apikey

import (
	"context"
	"encoding/hex"
	"iter"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/hook"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/keyhash"
)

const (
	labelImported = "ak1o" // hashes of their text
	labelSum      = "ak1s"

	maxSame  = 8       // imported keys that are found by the same
	maxText  = 512     // bytes of the text of one
	maxHash  = 1 << 10 // bytes of its hash
	maxStart = 64      // bytes that are shown
	maxLast  = 8
)

// Forms recognise API keys of another program and read them, as Config.KeyHashes of the service says. A nil *Forms knows none.
type Forms struct {
	forms map[string]keyhash.Form
	names []string      // sorted: those with the longest prefix first
	slow  chan struct{} // a place for each slow verification that runs
}

// CheckForms refuses forms that NewForms does not take. fault.InvalidRequest, of the field KeyHashes.
func CheckForms(forms map[string]keyhash.Form) error {
	for name, f := range forms {
		switch {
		case !text.IsName(name):
			return fault.Wrong("KeyHashes", "%q is no name", name)
		case f.Lookup == nil || f.Verify == nil:
			return fault.Wrong("KeyHashes", "%q has no Lookup or no Verify", name)
		case strings.HasPrefix(f.Prefix, "eyJ"):
			return fault.Wrong("KeyHashes", "%q: JWTs begin with eyJ", name)
		}
	}
	return nil
}

// NewForms copies the host's forms; nil: there are none.
func NewForms(forms map[string]keyhash.Form) *Forms {
	if len(forms) == 0 {
		return nil
	}
	f := &Forms{forms: maps.Clone(forms), slow: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	f.names = slices.SortedFunc(maps.Keys(forms), func(a, b string) int {
		if d := len(forms[b].Prefix) - len(forms[a].Prefix); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return f
}

// Recognize reports whether a text may be a key of one of the forms. What looks like a JWT is none, unless its prefix says so.
func (f *Forms) Recognize(key string) bool {
	if f == nil || len(key) > maxText {
		return false
	}
	return slices.ContainsFunc(f.names, func(name string) bool { return f.may(name, key) })
}

func (f *Forms) may(name, key string) bool {
	prefix := f.forms[name].Prefix
	return strings.HasPrefix(key, prefix) && (prefix != "" || !strings.HasPrefix(key, "eyJ"))
}

// lookup is what key is found by in a form, empty for none.
func (f *Forms) lookup(name, key string) (lookup string, err error) {
	defer contain(&err)
	if !f.may(name, key) {
		return "", nil
	}
	return f.forms[name].Lookup(key), nil
}

// verify calls the host's Verify. fault.Unavailable: it panicked, or too many slow ones run.
func (f *Forms) verify(ctx context.Context, old *OldHash, key string) (ok bool, err error) {
	defer contain(&err)
	form, known := f.forms[old.Form]
	if !known {
		return false, nil
	}
	if form.Slow {
		ctx, cancel := context.WithTimeout(ctx, readTimeout)
		defer cancel()
		select {
		case f.slow <- struct{}{}:
			defer func() { <-f.slow }()
		case <-ctx.Done():
			return false, fault.NoAnswer(ctx.Err(), "too many imported API keys are checked at once")
		}
	}
	return form.Verify(key, old.Hash), nil
}

// contain makes an error of a panic in a form.
func contain(err *error) {
	if p := recover(); p != nil {
		*err = fault.NoAnswer(hook.Panicked(p), "Config.KeyHashes")
	}
}

// Imported asks has about the IDs that an imported key with this text may have: found where it knows one of them; whole: the key is
// found by a digest of its whole text, so that nobody can ask who knows only a part. fault.Unavailable: a form panicked.
func (f *Forms) Imported(namespace, key string, has func(id string) bool) (found, whole bool, err error) {
	for _, name := range f.names {
		lookup, err := f.lookup(name, key)
		if err != nil {
			return false, false, err
		}
		if lookup != "" && has(opaque.ImportedID(namespace, name, lookup, 0).String()) {
			form := f.forms[name]
			return true, form.Read != nil && !form.Slow, nil
		}
	}
	return false, false, nil
}

// Find yields what in a text may be an imported key: what begins with a form's prefix, up to the first byte that no key has, and up
// to the first that is neither letter, digit, _ nor -.
func (f *Forms) Find(in []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		if f == nil {
			return
		}
		body := string(in)
		for _, name := range f.names {
			prefix := f.forms[name].Prefix
			if prefix == "" {
				continue
			}
			for at := 0; ; at += len(prefix) {
				i := strings.Index(body[at:], prefix)
				if i < 0 {
					break
				}
				at += i
				short, long := reach(body[at:], len(prefix))
				if short != long && !yield(body[at:at+short]) || !yield(body[at:at+long]) {
					return
				}
			}
		}
	}
}

// reach is how far a key that begins body, with a prefix of n bytes, may go: to the first byte that most keys do not have, and to
// the first that none has.
func reach(body string, n int) (short, long int) {
	for long = n; long < min(len(body), maxText); long++ {
		c := body[long]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' {
			continue
		}
		if short == 0 {
			short = long
		}
		if !strings.ContainsRune(".~+/=:", rune(c)) {
			break
		}
	}
	if short == 0 {
		short = long
	}
	return short, long
}

// Given is what another program kept of a key.
type Given struct {
	Form, Hash, Lookup, Start, Last string
	Created                         time.Time // zero: now
}

// Import is a key of another program on its way into the store.
type Import struct {
	*Record
	lookup string
}

// Import completes the record of a key that another program made. fault.InvalidRequest.
func (f *Forms) Import(namespace string, rec *Record, x Given, now time.Time) (*Import, error) {
	var form keyhash.Form
	known := false
	if f != nil {
		form, known = f.forms[x.Form]
	}
	if !known {
		return nil, fault.Fail(fault.InvalidRequest, "%q is no form of Config.KeyHashes", x.Form)
	}
	kept, lookup := x.Hash, ""
	if form.Read != nil {
		var err error
		if kept, lookup, err = form.Read(x.Hash); err != nil {
			return nil, &fault.Error{Code: fault.InvalidRequest, Detail: "hash: " + err.Error(), Cause: err}
		}
	}
	if lookup == "" {
		if lookup = x.Lookup; x.Start == "" {
			x.Start = lookup
		}
	}
	if x.Created.IsZero() || x.Created.After(now) {
		x.Created = now
	}
	switch {
	case kept == "" || len(kept) > maxHash || !text.PlainText(kept):
		return nil, fault.Fail(fault.InvalidRequest, "a hash has 1 to %d bytes of text", maxHash)
	case lookup == "" || len(lookup) > maxText:
		return nil, fault.Fail(fault.InvalidRequest, "what the key is found by is missing, or over %d bytes", maxText)
	case len(x.Start) > maxStart || !text.PlainText(x.Start) || len(x.Last) > maxLast || !text.PlainText(x.Last):
		return nil, fault.Fail(fault.InvalidRequest, "Start has at most %d bytes, Last %d, without control characters", maxStart, maxLast)
	case x.Created.UnixMilli() < 0:
		return nil, fault.Fail(fault.InvalidRequest, "Created is before 1970")
	}
	rec.Created, rec.Start, rec.Last = x.Created.UnixMilli(), x.Start, x.Last
	sum := opaque.Hash(labelSum, []byte(namespace), []byte(x.Form), []byte(kept))
	rec.Old = &OldHash{Form: x.Form, Hash: kept, Sum: hex.EncodeToString(sum[:16])}
	return &Import{rec, lookup}, nil
}

// id is the ID of the nth key that is found by the same.
func (x *Import) id(namespace string, n int) opaque.ID {
	return opaque.ImportedID(namespace, x.Old.Form, x.lookup, n)
}
