package clientauth

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

// checker is a Checker whose generated secrets are "gen " and a key in base64; those that end in "!" are another service's. ended holds
// the IDs of secrets that a rule has ended.
func checker(ended map[string]bool) *Checker {
	return New(Config{
		Namespace: func() string { return "ns" },
		Seal: func(k *opaque.Key) string {
			return "gen " + base64.StdEncoding.EncodeToString(append(k.ID[:], k.Secret[:]...))
		},
		Read: func(_ context.Context, text string) (*opaque.Key, bool, error) {
			text, generated := strings.CutPrefix(text, "gen ")
			text, foreign := strings.CutSuffix(text, "!")
			raw, err := base64.StdEncoding.DecodeString(text)
			if !generated || err != nil {
				return nil, false, nil
			}
			k := new(opaque.Key)
			copy(k.Secret[:], raw[copy(k.ID[:], raw):])
			return k, !foreign, nil
		},
		Ended: func(id string) bool { return ended[id] },
		Now:   time.Now,
	})
}

// A generated secret proves its own client and no other one, until a rule ends it. It is no registration token, nor the other way
// round.
func TestAGeneratedSecretIsOneClients(t *testing.T) {
	t.Parallel()
	ended := map[string]bool{}
	c := checker(ended)
	text, x := c.Make("a")
	token, reg := c.MakeRegistration("a")
	proves := func(client, text string, has ...Secret) bool {
		proof, ok, err := c.Prove(t.Context(), &Credentials{Client: client, Secrets: has}, &Attempt{Client: client, Secret: text}, true)
		is.NoError(t, err)
		is.True(t, !ok || proof == Proof{Hash: has[0].Hash, Made: true})
		return ok
	}
	is.True(t, proves("a", text, x))
	is.False(t, proves("b", text, x), "under another client's name")
	is.False(t, proves("a", token, x))
	is.False(t, proves("a", token, reg), "a registration token is no secret")
	is.False(t, proves("a", text+"!", x), "with a tag that is not ours")

	g, err := c.Read(t.Context(), token)
	is.NoError(t, err)
	is.Equal(t, reg.Hash, c.Registration("a", g))
	is.NotEqual(t, reg.Hash, c.Registration("b", g))
	is.NotEqual(t, reg.Hash, c.Verifier("a", g))

	ended[opaque.ID(x.ID).String()] = true
	is.False(t, proves("a", text, x), "it has ended")
	is.True(t, c.Leaked(t.Context(), "a", text, nil))
	is.False(t, c.Leaked(t.Context(), "a", token, nil))
	is.True(t, c.Leaked(t.Context(), "a", token, [][]byte{reg.Hash[:], c.hashOf(t, "a", token)}), "it is among those that leaked")
}

func (c *Checker) hashOf(t *testing.T, client, text string) []byte {
	g, err := c.Read(t.Context(), text)
	is.NoError(t, err)
	h := c.Verifier(client, g)
	return h[:]
}

// A secret that the host gives is stored in the form that is fastest to check and still safe: the host's hash, or ours by how
// the secret was made.
func TestSecretsThatAHostBrings(t *testing.T) {
	t.Parallel()
	c := checker(nil)
	ours, _ := c.Make("a")
	const chosen = "a secret of the host's choice"
	hashed, err := HashChosen(chosen)
	is.NoError(t, err)
	for _, text := range []string{ours, ours + "!", hashed} {
		is.NoError(t, CheckBrought("a", text))
		x, err := c.Take(t.Context(), "a", text)
		is.NoError(t, err)
		is.Equal(t, text == hashed, x.Chosen(), text)
		is.True(t, c.Same(t.Context(), "a", []Secret{x}, []string{text}))
		is.False(t, c.Same(t.Context(), "a", []Secret{x}, nil))
		is.False(t, c.Same(t.Context(), "a", []Secret{x}, []string{"gen AAAA"}))
		shown := text
		if text == hashed {
			shown = chosen
		}
		_, ok, err := c.Prove(t.Context(), &Credentials{Client: "a", Secrets: []Secret{x}}, &Attempt{Client: "a", Secret: shown}, false)
		is.NoError(t, err)
		is.True(t, ok, text)
	}
	for _, bad := range []string{"short", hashed[:40]} {
		is.ErrorIs(t, CheckBrought("a", bad), fault.InvalidRequest)
	}
	_, err = HashChosen("short")
	is.ErrorIs(t, err, fault.InvalidRequest)
}

// A public client is whoever gives its ID. A secret or an assertion has to be right all the same.
func TestWhatProvesAPublicClient(t *testing.T) {
	t.Parallel()
	c := checker(nil)
	public := &Credentials{Client: "app", Public: true}
	for want, list := range map[bool][]Attempt{
		true:  {{}, {Certificate: new(x509.Certificate)}},
		false: {{Secret: "a secret of nobody's"}, {Assertion: "x.y.z"}},
	} {
		for _, a := range list {
			a.Client = "app"
			_, ok, err := c.Prove(t.Context(), public, &a, true)
			is.NoError(t, err)
			is.Equal(t, want, ok, "%+v", a)
			_, ok, err = c.Prove(t.Context(), nil, &a, true)
			is.NoError(t, err)
			is.False(t, ok, "there is no such client")
		}
	}
}
