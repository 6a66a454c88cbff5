package apitoken

import (
	"strings"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/ticket"
	"github.com/apitoken-go/apitoken/store"
)

func FuzzScopes(f *testing.F) {
	for _, s := range []string{"", "a", "a b", "a  b", "orders:read orders:*", "a a", ":", "a:", "a::b", "é", "*", strings.Repeat("a ", 300)} {
		f.Add(s, "orders:read")
	}
	f.Fuzz(func(t *testing.T, text, want string) {
		scopes, err := ParseScopes(text)
		if err != nil {
			return
		}
		if again, err := ParseScopes(scopes.String()); err != nil || !scopes.Cover(again) || !again.Cover(scopes) || len(again) != len(scopes) {
			t.Fatalf("%q reads back as %q", text, again)
		}
		if err := registry(nil).check(scopes); err != nil {
			t.Fatal(err)
		}
		held := prepareScopes(scopes)
		slow := false
		for _, s := range scopes {
			slow = slow || s.Covers(Scope(want))
		}
		if Scope(want).wellFormed() && held.allows(Scope(want)) != slow {
			t.Fatalf("%q: prepared and plain disagree about %q", text, want)
		}
	})
}

func FuzzPositions(f *testing.F) {
	for _, s := range []string{"1f.100.200", "1.2.3.4", "", "..", "-1.2.3", "1.2.3.1", "+1.2.3", "1.+2.3", "01.2.3", "1F.2.3", "1.2.8000000000000000", "1_0.2.3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, ok := rules.ParsePositions(text)
		if !ok {
			return
		}
		back, ok := rules.ParsePositions(p.String())
		if !ok || back != p || p.String() != text {
			t.Fatalf("%q reads back as %v", text, back)
		}
		if p.Birth.N > p.View.N {
			t.Fatal("born after it was minted")
		}
	})
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"subject:alice", "everything", "grant:a;owner=b;client=c", "subject:a;before=2024-01-02T03:04:05Z", "token:%3B"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var x, y rules.Target
		if x.UnmarshalText([]byte(text)) != nil {
			return
		}
		if err := y.UnmarshalText([]byte(x.String())); err != nil || x.String() != text || y != x {
			t.Fatalf("%q reads back as %q", text, y.String())
		}
		if text != "" && x.IsZero() {
			t.Fatalf("%q names nothing", text)
		}
	})
}

// FuzzStoredRecord feeds every reader of stored records. None may panic, and none may take junk for something that
// gives power.
func FuzzStoredRecord(f *testing.F) {
	for _, s := range []string{`{"v":1}`, `{"v":1,"target":"subject:a","at":1}`, `{"v":2}`, `{"v":1,"sub":"a","client":"c","aud":["x"],"expires":1}`, `{}`, `null`, `[]`, `{"v":1,"v":1}`, ``} {
		f.Add([]byte(s), "subject:a")
	}
	session, err := grantForm.Write(store.Record{ID: "g"}, &grantRecord{V: 1, Subject: "alice", Client: "web", Audiences: []string{"x"}, Expires: 1, Scopes: Scopes{"a", "b"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(session.Record().Data, "g")
	s := &Service{core: newCore(Config{Issuer: "https://a.example.com", KeyRotation: time.Hour, Now: time.Now}, false)}
	s.SigningKeys = newSigningKeys(s.core)
	s.Clients = newClients(s.core, s.SigningKeys)
	s.APIKeys = newAPIKeys(s.core, s.SigningKeys, s.Clients)
	f.Fuzz(func(t *testing.T, data []byte, id string) {
		for _, kind := range []store.Kind{store.KindRule, store.KindClient, store.KindRole, store.KindAPIKey, grant.Kind, ticket.Kind, store.KindEvent} {
			r := store.Record{Kind: kind, ID: id, Data: data}
			switch kind {
			case store.KindRule:
				if x, err := rules.ReadRule(r); err == nil && x.Target.IsZero() {
					t.Fatal("a rule on nothing")
				}
				_ = rules.NewBook(rules.LocalKeyer()).ApplyRecord(r)
			case store.KindClient:
				_ = newClients(s.core, s.SigningKeys).known.Apply(r)
			case store.KindRole:
				_ = new(roleBook).Apply(r)
			case store.KindAPIKey:
				if rec, err := apikey.Read(r, s.rules); err == nil {
					_ = s.APIKeys.token(&knownKey{Rule: rec.Rule(r.ID), End: rec.End()}, &rec)
					_ = shownKey(r.ID, &rec)
				}
			case grant.Kind:
				if g, err := readGrant(r); err == nil && g.Subject == "" {
					t.Fatal("a grant of nobody")
				}
			case ticket.Kind:
				var x ticketRecord
				_ = read(ticketForm, r, &x)
			case store.KindEvent:
				_, _ = readEvent(r)
			}
		}
	})
}

func FuzzCleanText(f *testing.F) {
	for _, s := range []string{"", "plain", "\x00", "a\u202eb", "\xff\xfe", strings.Repeat("é", 300), "\u2028"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out := text.CleanText(s)
		if len(out) > text.MaxText || !text.PlainText(out) {
			t.Fatalf("%q comes out as %q", s, out)
		}
	})
}
