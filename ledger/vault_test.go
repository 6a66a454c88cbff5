package ledger_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/ledger"
)

func sealer(t testing.TB) apitoken.Sealer {
	t.Helper()
	key := make([]byte, 32)
	rand.Read(key)
	s, err := apitoken.NewSealer(key)
	require.NoError(t, err)
	return s
}

func openVault(t testing.TB, path string) *ledger.Vault {
	t.Helper()
	return openVaultAs(t, path, sealer(t))
}

func openVaultAs(t testing.TB, path string, s apitoken.Sealer) *ledger.Vault {
	t.Helper()
	v, err := ledger.OpenVault(context.Background(), path, s)
	require.NoError(t, err)
	t.Cleanup(func() { _ = v.Close() })
	return v
}

func leaves(t testing.TB, l *log) (list []ledger.Leaf) {
	t.Helper()
	require.NoError(t, l.Leaves(context.Background(), 0, -1, func(x ledger.Leaf) error {
		list = append(list, x)
		return nil
	}))
	return list
}

func TestErasedPersonIsGoneAndTheLogVerifies(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	seals := sealer(t)
	vault := openVaultAs(t, dir, seals)
	l := open(t, ledgerPath(t), func(c *ledger.Config) { c.Vault = vault })
	from := apitoken.Origin{Address: netip.MustParseAddr("198.51.100.7"), UserAgent: "Mozilla/5.0 (alice's)", RequestID: "request:1"}
	f := &feed{events: []apitoken.Event{
		{ID: "01a", Time: eventTime, Type: event.Issued, OK: true, Actor: "alice", Subject: "alice", Client: "web", TokenID: "t1", Scopes: apitoken.Scopes{"a"}, Origin: from},
		{ID: "01b", Time: eventTime, Type: event.Revoked, OK: true, Actor: "operator-bob", Subject: "alice", Target: apitoken.BySubject("alice"), Reason: "alice left", Origin: from, Extra: map[string]string{"note": "alice"}},
		{ID: "01c", Time: eventTime, Type: event.Issued, OK: true, Actor: "operator-bob", Subject: "carol", Origin: from},
		{ID: "01d", Time: eventTime, Type: event.Refused, Reason: "unknown", Count: 3, Origin: from},
		{ID: "01e", Time: eventTime, Type: event.Refused, Reason: "malformed", Count: 2, Extra: map[string]string{"addresses": "198.51.100.7"}},
		{ID: "01f", Time: eventTime, Type: event.KeyChanged, OK: true, Reason: "rotated", Extra: map[string]string{"kid": "k1"}},
	}}
	require.NoError(t, l.Follow(f))
	before := seal(t, l)
	export := exported(t, l, 0, -1)
	// None of them could stand in base64url by chance: they are too long, or have a letter that it has not.
	for _, secret := range []string{"alice", "operator-bob", "carol", "198.51.100.7", "Mozilla", "request:1"} {
		require.NotContains(t, string(export), secret, "what concerns a person does not stand in the log")
	}
	require.Contains(t, string(export), `"reason":"unknown"`, "what concerns nobody does")
	require.Contains(t, string(export), `"kid":"k1"`)

	list := leaves(t, l)
	for i, x := range list {
		e, erased, err := vault.Reveal(x)
		require.NoError(t, err)
		require.False(t, erased)
		require.Equal(t, f.events[i], e, "nothing is lost")
	}
	require.Equal(t, list[0].SubjectRef, list[1].SubjectRef, "one person has one pseudonym")
	require.NotEqual(t, list[0].SubjectRef, list[2].SubjectRef)

	erased, err := vault.Erase(ctx, "alice")
	require.NoError(t, err)
	require.True(t, erased)
	again, err := vault.Erase(ctx, "alice")
	require.NoError(t, err)
	require.False(t, again)

	check := func(vault *ledger.Vault) {
		e, erased, err := vault.Reveal(list[0])
		require.NoError(t, err)
		require.True(t, erased)
		require.Equal(t, apitoken.Event{ID: "01a", Time: eventTime, Type: event.Issued, OK: true, Client: "web", TokenID: "t1", Scopes: apitoken.Scopes{"a"}}, e)
		e, erased, err = vault.Reveal(list[1])
		require.NoError(t, err)
		require.True(t, erased)
		require.Equal(t, apitoken.Event{ID: "01b", Time: eventTime, Type: event.Revoked, OK: true, Actor: "operator-bob"}, e,
			"what was said of both is gone with either; the other one's part stays")
		e, erased, err = vault.Reveal(list[2])
		require.NoError(t, err)
		require.False(t, erased)
		require.Equal(t, f.events[2], e)
	}
	check(vault)

	f.change(func(f *feed) {
		f.events = append(f.events, apitoken.Event{ID: "01g", Time: eventTime, Type: event.Issued, OK: true, Subject: "alice"})
	})
	last := seal(t, l)
	_, err = verify(l, exported(t, l, 0, -1), last, before)
	require.NoError(t, err, "the log verifies as before")
	require.True(t, bytes.HasPrefix(exported(t, l, 0, -1), export))
	slotOf := func(ref string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(ref)
		require.NoError(t, err)
		require.Len(t, b, 16)
		return b[:4]
	}
	require.NotEqual(t, slotOf(list[0].SubjectRef), slotOf(leaves(t, l)[6].SubjectRef), "a new pseudonym tells nothing of the old one, not even by its slot")
	check(vault)

	did, err := vault.EraseAddress(ctx, from.Address)
	require.NoError(t, err)
	require.True(t, did)
	_, erased, err = vault.Reveal(list[3])
	require.NoError(t, err)
	require.True(t, erased)
	did, err = vault.EraseAddress(ctx, netip.Addr{})
	require.NoError(t, err)
	require.True(t, did, "refusals that were summed up")

	// Also after a restart, and with another key-encryption key.
	require.NoError(t, vault.Rotate(ctx))
	check(vault)
	l.shut()
	require.NoError(t, vault.Close())
	vault = openVaultAs(t, dir, seals)
	check(vault)
	require.Zero(t, vault.Damaged())
	require.Equal(t, 3, vault.Persons()) // bob, carol, alice anew
}

// TestForeignPersonsHaveTheirOwnKeys: a partner's bob is another person than the service's own bob, in pseudonyms and when one
// of them is erased.
func TestForeignPersonsHaveTheirOwnKeys(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const partner = "https://partner.example"
	vault := openVault(t, t.TempDir())
	l := open(t, ledgerPath(t), func(c *ledger.Config) { c.Vault = vault })
	f := &feed{events: []apitoken.Event{
		{ID: "01a", Time: eventTime, Type: event.Issued, OK: true, Actor: "bob", Subject: "bob"},
		{ID: "01b", Time: eventTime, Type: event.Refused, Reason: "insufficient_scope", Subject: "bob", Issuer: partner, Count: 1},
		{ID: "01c", Time: eventTime, Type: event.Revoked, OK: true, Actor: "bob", ActorIssuer: partner, Subject: "bob", Reason: "by a namesake"},
		{ID: "01d", Time: eventTime, Type: event.Exchanged, OK: true, Actor: "bob", ActorIssuer: partner, Subject: "bob", Issuer: partner, Extra: map[string]string{"actor": "bob"}},
	}}
	require.NoError(t, l.Follow(f))
	seal(t, l)
	list := leaves(t, l)
	for i, x := range list {
		e, erased, err := vault.Reveal(x)
		require.NoError(t, err)
		require.False(t, erased)
		require.Equal(t, f.events[i], e, "nothing is lost")
	}
	ours, theirs := list[0].SubjectRef, list[1].SubjectRef
	require.NotEqual(t, ours, theirs)
	require.Equal(t, [2]string{ours, theirs}, [2]string{list[2].SubjectRef, list[2].ActorRef})
	require.Equal(t, [3]string{theirs, theirs, ours}, [3]string{list[3].SubjectRef, list[3].ActorRef, list[3].OriginRef}, "who acts by it is one of ours")

	_, err := vault.EraseForeign(ctx, "", "bob")
	require.Error(t, err)
	gone, err := vault.EraseForeign(ctx, "https://other.example", "bob")
	require.NoError(t, err)
	require.False(t, gone)
	gone, err = vault.EraseForeign(ctx, partner, "bob")
	require.NoError(t, err)
	require.True(t, gone)
	for i, want := range []apitoken.Event{
		f.events[0],
		{ID: "01b", Time: eventTime, Type: event.Refused, Reason: "insufficient_scope", Issuer: partner, Count: 1},
		{ID: "01c", Time: eventTime, Type: event.Revoked, OK: true, ActorIssuer: partner, Subject: "bob"},
		{ID: "01d", Time: eventTime, Type: event.Exchanged, OK: true, ActorIssuer: partner, Issuer: partner},
	} {
		e, erased, err := vault.Reveal(list[i])
		require.NoError(t, err)
		require.Equal(t, i > 0, erased)
		require.Equal(t, want, e)
	}
}

func TestVaultFilesHoldNoNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	vault := openVault(t, dir)
	l := open(t, ledgerPath(t), func(c *ledger.Config) { c.Vault = vault })
	f := &feed{}
	f.add(200)
	require.NoError(t, l.Follow(f))
	seal(t, l)
	require.Equal(t, 51, vault.Persons())
	for _, name := range []string{"keys.json", "persons"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.NotContains(t, string(data), "user-")
	}
	_, err := ledger.OpenVault(context.Background(), dir, nil)
	require.Error(t, err)
	_, err = ledger.OpenVault(context.Background(), dir, sealer(t))
	require.ErrorContains(t, err, "open already", "who erases beside the ledger would not be heard by it")
	l.shut()
	require.NoError(t, vault.Close())
	_, err = ledger.OpenVault(context.Background(), dir, sealer(t))
	require.Error(t, err, "another sealer does not open it")
	require.NotContains(t, err.Error(), "open already")
	_, _, err = vault.Reveal(ledger.Leaf{})
	require.Error(t, err, "closed")
	_, err = vault.Erase(context.Background(), "user-1")
	require.Error(t, err, "an erasure that was not done is not acknowledged")
	require.NoError(t, os.Remove(filepath.Join(dir, "keys.json")))
	_, err = ledger.OpenVault(context.Background(), dir, sealer(t))
	require.ErrorContains(t, err, "backup", "a vault without its keys is not begun anew")
}

func TestVaultSurvivesATornSlot(t *testing.T) {
	t.Parallel()
	dir, seals := t.TempDir(), sealer(t)
	vault := openVaultAs(t, dir, seals)
	l := open(t, ledgerPath(t), func(c *ledger.Config) { c.Vault = vault })
	f := &feed{}
	f.add(10)
	require.NoError(t, l.Follow(f))
	seal(t, l)
	l.shut()
	require.NoError(t, vault.Close())
	file, err := os.OpenFile(filepath.Join(dir, "persons"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = file.Write(append(bytes.Repeat([]byte{1}, 128), 1, 2, 3))
	require.NoError(t, err)
	require.NoError(t, file.Close())
	rewrite(t, filepath.Join(dir, "lock"), func(b []byte) []byte { return make([]byte, len(b)) })
	vault = openVaultAs(t, dir, seals)
	require.Equal(t, 1, vault.Damaged())
	require.Equal(t, 11, vault.Persons())
	l = l.reopen(t, func(c *ledger.Config) { c.Vault = vault })
	f.add(50)
	require.NoError(t, l.Follow(f))
	last := seal(t, l)
	_, err = verify(l, exported(t, l, 0, -1), last)
	require.NoError(t, err)
	for i, x := range leaves(t, l) {
		e, erased, err := vault.Reveal(x)
		require.NoError(t, err)
		require.False(t, erased)
		require.Equal(t, anEvent(i).Subject, e.Subject)
	}
}

// TestWhoeverAnEventTellsOfCanBeErased: whoever is named outside of subject and actor too.
func TestWhoeverAnEventTellsOfCanBeErased(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	at := netip.MustParseAddr("198.51.100.7")
	exchanged := apitoken.Event{ID: "01a", Time: eventTime, Type: event.Exchanged, OK: true, Subject: "alice", Client: "web", Grant: "g1",
		Extra: map[string]string{"actor": "robert", "chain": "g0"}}
	helped := exchanged
	helped.Actor = "carol"
	own := exchanged
	own.Actor = "alice"
	strange := apitoken.Event{ID: "01b", Time: eventTime, Type: event.Alert, Reason: "unknown-tokens", Actor: "misuse", Count: 200,
		Origin: apitoken.Origin{Address: at}, Extra: map[string]string{"addresses": at.String()}}
	erase := func(name string) func(*ledger.Vault) (bool, error) {
		return func(v *ledger.Vault) (bool, error) { return v.Erase(ctx, name) }
	}
	bare := apitoken.Event{ID: "01a", Time: eventTime, Type: event.Exchanged, OK: true, Client: "web", Grant: "g1"}
	with := func(e apitoken.Event, subject, actor string) apitoken.Event {
		e.Subject, e.Actor = subject, actor
		return e
	}
	for _, c := range []struct {
		what  string
		event apitoken.Event
		erase func(*ledger.Vault) (bool, error)
		left  apitoken.Event
	}{
		{"who acts for the subject", exchanged, erase("robert"), with(bare, "alice", "")},
		{"the subject", exchanged, erase("alice"), bare},
		{"who acts, beside a third one", helped, erase("robert"), with(bare, "alice", "carol")},
		{"the third one", helped, erase("carol"), with(bare, "alice", "")},
		{"who acts for who asked", own, erase("robert"), with(bare, "alice", "alice")},
		{"who asked", own, erase("alice"), bare},
		{"a stranger's address in an alert", strange, func(v *ledger.Vault) (bool, error) { return v.EraseAddress(ctx, at) },
			apitoken.Event{ID: "01b", Time: eventTime, Type: event.Alert, Actor: "misuse", Count: 200}},
	} {
		vault := openVault(t, t.TempDir())
		l := open(t, ledgerPath(t), func(c *ledger.Config) { c.Vault = vault })
		src := &feed{events: []apitoken.Event{c.event}}
		require.NoError(t, l.Follow(src))
		seal(t, l)
		for _, name := range []string{"alice", "robert", "carol", "198.51.100.7"} {
			require.NotContains(t, string(exported(t, l, 0, -1)), name, c.what)
		}
		leaf := leaves(t, l)[0]
		e, erased, err := vault.Reveal(leaf)
		require.NoError(t, err, c.what)
		require.False(t, erased, c.what)
		require.Equal(t, c.event, e, c.what)
		done, err := c.erase(vault)
		require.NoError(t, err, c.what)
		require.True(t, done, "%s has a key", c.what)
		e, erased, err = vault.Reveal(leaf)
		require.NoError(t, err, c.what)
		require.True(t, erased, c.what)
		require.Equal(t, c.left, e, c.what)
		require.NoError(t, l.CheckSource(ctx, src), c.what)
	}
}
