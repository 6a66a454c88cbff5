package apikey

import (
	"strings"
	"testing"
	"time"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
)

// A key ends with the earliest of its own end, its rotation and its revocation; its record stays for a while, in lists.
func TestTheEndOfAKey(t *testing.T) {
	t.Parallel()
	const now = 1_000_000
	for _, x := range []struct {
		what         string
		rec          Record
		end          int64
		live, counts bool
	}{
		{"it never ends", Record{}, 0, true, true},
		{"it ends by itself", Record{Expires: now + 1}, now + 1, true, true},
		{"it has ended", Record{Expires: now}, now, false, false},
		{"a successor takes its place later", Record{Expires: now + 9, Replaced: now + 5}, now + 5, true, false},
		{"a successor took its place", Record{Replaced: now - 5}, now - 5, false, false},
		{"it is revoked", Record{Expires: now + 9, Replaced: now + 5, Revoked: now - 1}, now - 1, false, false},
		{"it is revoked by a process whose clock is ahead", Record{Revoked: now + 7}, now + 7, false, false},
		{"it is disabled, and has its place", Record{Disabled: now - 1}, 0, true, true},
	} {
		at := time.UnixMilli(now)
		is.Equal(t, x.end, x.rec.End(), x.what)
		is.Equal(t, x.live, x.rec.Live(at), x.what)
		is.Equal(t, x.counts, x.rec.Counts(at), x.what)
		if x.end == 0 {
			is.Zero(t, x.rec.Kept(), x.what)
		} else {
			is.Equal(t, x.end+30*24*3600*1000, x.rec.Kept(), x.what)
		}
	}
}

// Nothing of what is refused gets into a record.
func TestWhatAKeyMayBeGiven(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000)
	refused := func(err error) {
		t.Helper()
		is.ErrorIs(t, err, fault.InvalidRequest)
	}
	rec := &Record{Replaced: now.Add(time.Hour).UnixMilli()}
	refused(rec.SetName("two\nlines"))
	refused(rec.SetName(strings.Repeat("n", 101)))
	refused(rec.SetMetadata(map[string]string{"": "no name"}))
	refused(rec.SetMetadata(map[string]string{"team": strings.Repeat("x", 2<<10)}))
	refused(rec.SetLimits(1, "week", Rate{}))
	refused(rec.SetLimits(0, "day", Rate{}))
	refused(rec.SetLimits(0, "", Rate{Burst: 1}))
	refused(rec.SetLimits(0, "", Rate{Burst: -1, Per: time.Second}))
	refused(rec.SetExpires(now, now, 0))
	refused(rec.SetExpires(time.Time{}, now, time.Hour))
	refused(rec.SetExpires(now.Add(time.Hour+1), now, time.Hour))
	refused(rec.SetExpires(time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC), now, 0))
	is.Equal(t, &Record{Replaced: now.Add(time.Hour).UnixMilli()}, rec)

	is.NoError(t, rec.SetExpires(now.Add(time.Minute), now, time.Hour))
	is.Equal(t, rec.Expires, rec.Replaced, "the overlap ends with the key")
	is.NoError(t, rec.SetMetadata(map[string]string{"team": "blue", "env": "prod"}))
	is.True(t, rec.Has(map[string]string{"team": "blue"}))
	is.False(t, rec.Has(map[string]string{"team": "blue", "env": "test"}))
	is.NoError(t, rec.SetMetadata(nil))
	is.Nil(t, rec.Metadata())
	is.True(t, rec.Has(nil))
	is.False(t, rec.Has(map[string]string{"team": ""}), "an empty value is not an absent one")
}
