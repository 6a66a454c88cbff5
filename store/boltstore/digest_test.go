package boltstore

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// TestPagesThatWereNotWritten replaces each page of a file by each older version of itself, as a disk does that lost
// one write. Opening or reading it fails, or all of it is as it was written.
func TestPagesThatWereNotWritten(t *testing.T) {
	t.Parallel()
	path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
	s := openT(t, path, nil)
	ps := os.Getpagesize()
	versions := map[int][][]byte{} // of each page, oldest first
	keep := func() {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		for n := range len(b) / ps {
			page := b[n*ps : (n+1)*ps]
			if old := versions[n]; len(old) == 0 || !bytes.Equal(old[len(old)-1], page) {
				versions[n] = append(old, page)
			}
		}
	}
	grants, rules := map[int]store.Version{}, map[int]store.Version{}
	other := s.Namespace("other")
	for i := range 120 {
		g, r := i%60, i%25
		p, rule := put("grant", fmt.Sprint("grant ", g), grants[g]), put(store.KindRule, fmt.Sprint("rule ", r), rules[r])
		p.Subject, rule.Subject = fmt.Sprint("s", g%3), "s1"
		p.Expires = 1 << 45
		if g%8 == 0 {
			p.Expires = 1 // purged below
		}
		e := event(fmt.Sprint("event ", i))
		e.Subject = p.Subject
		v := must(t, s, []store.Put{p, rule}, e)
		grants[g], rules[r] = v, v
		if i%10 == 0 {
			must(t, other, []store.Put{put(store.KindAPIKey, fmt.Sprint("key ", i), store.Version{})})
		}
		if i%30 == 29 {
			_, err := s.Purge(ctx, "grant", 2, 100)
			require.NoError(t, err)
			for g := 0; g < 60; g += 8 {
				delete(grants, g)
			}
		}
		// In the writer, for the index may be merging.
		require.NoError(t, s.alone(ctx, func() error { keep(); return nil }))
	}
	for _, kind := range []store.Kind{"grant", ""} {
		if dir := settle(t, s, kind); os.Getenv(envSmall) != "" {
			require.NotEmpty(t, dir)
			require.Greater(t, dir[0].size, groupMembers, "segments were merged")
		}
	}
	want, err := everything(s)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	keep()
	good, err := os.ReadFile(path)
	require.NoError(t, err)

	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	refused, right, short := 0, 0, 0
	for n, old := range versions {
		for i, page := range old[:len(old)-1] {
			what := fmt.Sprintf("page %d, version %d of %d", n, i, len(old))
			_, err := f.WriteAt(page, int64(n*ps))
			require.NoError(t, err)
			s, err := Open(path, &Options{ReadOnly: true})
			switch {
			case err != nil:
				refused++
			case n < 2 && s.Restored():
				refused++ // one of bbolt's meta pages: the file is as it was one commit ago
			default:
				got, err := everything(s)
				if err != nil {
					refused++ // a page of an index, found when it is read
					break
				}
				for name := range want {
					// Pages of the index are in no digest. Of an older one a listing by subject may be short, never wrong.
					if strings.Contains(name, "Subject:s1") {
						requirePart(t, got[name], want[name], what, name)
						if len(got[name]) < len(want[name]) {
							short++
						}
						continue
					}
					require.True(t, bytes.Equal(got[name], want[name]), "%s: %s is not what was written", what, name)
				}
				right++
			}
			if s != nil {
				require.NoError(t, s.Close())
			}
		}
		_, err := f.WriteAt(good[n*ps:(n+1)*ps], int64(n*ps))
		require.NoError(t, err)
	}
	require.Positive(t, refused)
	t.Logf("%d refused, %d right all the same, with %d listings by subject that are short", refused, right, short)

	s = openT(t, path, nil)
	got, err := everything(s)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

// TestPagesOfSegmentsThatWereNotWritten runs it again in a process of its own, with segments small enough that the changes fill
// some, and merge them.
func TestPagesOfSegmentsThatWereNotWritten(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPagesThatWereNotWritten$", "-test.v")
	cmd.Env = append(os.Environ(), envSmall+"=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestPagesThatWereNotWritten")
	t.Logf("%s", out)
}

// TestDigestIsKept compares the digests that commits, purges, compaction and backups maintain with the file.
func TestDigestIsKept(t *testing.T) {
	t.Parallel()
	path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
	s := openT(t, path, nil)
	check := func(s *Store) {
		t.Helper()
		v := &survey{ctx: ctx, all: true, each: func(int) {}}
		require.NoError(t, s.view(func(tx *bbolt.Tx) error {
			if _, _, _, err := readFormat(tx); err != nil {
				return err
			}
			return v.check(tx)
		}))
	}
	check(s)
	for i := range 300 {
		g, r, e := put("grant", fmt.Sprint(i), store.Version{}), put(store.KindRule, fmt.Sprint(i), store.Version{}), event(fmt.Sprint(i))
		g.Expires, r.Expires, e.Expires = 1+int64(i%2)<<40, 1+int64(i%2)<<40, 1+int64(i%2)<<40
		must(t, s, []store.Put{g, r}, e)
	}
	check(s)
	for _, kind := range []store.Kind{"grant", store.KindRule, store.KindEvent} {
		n, err := s.Purge(ctx, kind, 10, 1000)
		require.NoError(t, err)
		require.Positive(t, n)
		check(s)
	}
	require.NoError(t, s.Compact(ctx))
	check(s)
	must(t, s, []store.Put{put(store.KindRule, "after", store.Version{})})
	require.NoError(t, s.SetReadOnly(ctx, true))
	check(s)

	copied := filepath.Join(t.TempDir(), "copy.db")
	f, err := os.OpenFile(copied, os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	require.NoError(t, s.Backup(ctx, f))
	require.NoError(t, f.Close())
	check(openT(t, copied, nil))
}

// TestOpenUpgrades opens a file of format 1, which commit 6446eb8 wrote.
func TestOpenUpgrades(t *testing.T) {
	t.Parallel()
	in, err := os.Open("testdata/format1.db.gz")
	require.NoError(t, err)
	defer in.Close()
	z, err := gzip.NewReader(in)
	require.NoError(t, err)
	b, err := io.ReadAll(z)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "tokens.db")
	require.NoError(t, os.WriteFile(path, b, 0o600))

	s := openT(t, path, &Options{ReadOnly: true})
	want, err := everything(s)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, b, after, "a reader changes nothing")

	for i := range 2 {
		s = openT(t, path, nil)
		require.EqualValues(t, formatVersion, s.meta.format)
		got, err := everything(s)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Len(t, all(t, s, store.Query{Kind: "grant"}), 20)
		require.Len(t, all(t, s.Namespace("other"), store.Query{Kind: store.KindEvent}), 10)
		must(t, s, []store.Put{put(store.KindAPIKey, fmt.Sprint("key ", i), store.Version{})})
		want, err = everything(s)
		require.NoError(t, err)
		require.NoError(t, s.Close())
	}
}
