// Client secrets: generated ones with a fast hash, chosen ones with a slow one.

package clientauth

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/throttle"
)

const (
	MaxLive = 2 // secrets of a client at once

	minChosen  = 16      // bytes of a secret that a host chooses
	maxChosen  = 512     // bytes of a secret that is hashed slowly
	slowRounds = 600_000 // of PBKDF2-HMAC-SHA256, OWASP 2023
	saltBytes  = 16

	// hashedMark begins the text of a hashed secret: hash function, rounds, then salt and hash, 48 bytes in base64.
	hashedMark = "pbkdf2-sha256$600000$"
)

// Secret is a stored verifier. For 256 random bits a plain hash is enough; a secret that a host chose gets a slow one.
type Secret struct {
	ID      []byte   `json:"id,omitempty"` // of a generated secret: what finds its client when it turns up somewhere
	Hash    [32]byte `json:"h"`
	Salt    []byte   `json:"salt,omitempty"` // of a slow hash
	Rounds  int      `json:"rounds,omitempty"`
	Created int64    `json:"created"`           // Unix ms
	Expires int64    `json:"expires,omitempty"` // Unix ms; 0: never
}

// Chosen reports whether a host chose the secret, so that its hash is slow.
func (x *Secret) Chosen() bool { return x.Rounds > 0 }

// equal compares verifiers in constant time.
func (x *Secret) equal(o *Secret) bool {
	return x.Rounds == o.Rounds && string(x.Salt) == string(o.Salt) && subtle.ConstantTimeCompare(x.Hash[:], o.Hash[:]) == 1
}

// fits reports whether secret is the one that x is the slow verifier of. It takes a tenth of a second.
func (x *Secret) fits(secret string) bool {
	sum, err := slowHash(secret, x.Salt, x.Rounds)
	return err == nil && subtle.ConstantTimeCompare(sum[:], x.Hash[:]) == 1
}

func slowHash(secret string, salt []byte, rounds int) (out [32]byte, _ error) {
	key, err := pbkdf2.Key(sha256.New, secret, salt, rounds, len(out))
	if err != nil {
		return out, fault.NoAnswer(err, "slow hash")
	}
	copy(out[:], key)
	return out, nil
}

// newChosen makes the verifier of a secret that a host chose.
func newChosen(secret string, now time.Time) (Secret, error) {
	x := Secret{Salt: make([]byte, saltBytes), Rounds: slowRounds, Created: now.UnixMilli()}
	rand.Read(x.Salt)
	sum, err := slowHash(secret, x.Salt, x.Rounds)
	x.Hash = sum
	return x, err
}

// text is a slow verifier as a configuration file holds it.
func (x *Secret) text() string {
	return hashedMark + base64.StdEncoding.EncodeToString(append(slices.Clone(x.Salt), x.Hash[:]...))
}

// parse reads what text made. ok: text is of that form, damaged or not.
func parse(text string) (x Secret, ok bool, _ error) {
	rest, ok := strings.CutPrefix(text, hashedMark)
	if !ok {
		return x, false, nil
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(rest)
	if err != nil || len(raw) != saltBytes+32 {
		return x, true, fault.Fail(fault.InvalidRequest, "a hashed secret is damaged")
	}
	return Secret{Hash: [32]byte(raw[saltBytes:]), Salt: raw[:saltBytes:saltBytes], Rounds: slowRounds}, true, nil
}

// AppendLive appends those of a client's secrets that have not ended by now.
func AppendLive(live, all []Secret, now time.Time) []Secret {
	for _, x := range all {
		if x.Expires == 0 || now.UnixMilli() < x.Expires {
			live = append(live, x)
		}
	}
	return live
}

// Match finds the plain hash among a client's verifiers, in a time that depends on none of them; -1: it is not there.
func Match(live []Secret, hash [32]byte) int {
	found, decoy := -1, Secret{}
	for i := range MaxLive {
		x, real := &decoy, i < len(live) && !live[i].Chosen()
		if real {
			x = &live[i]
		}
		if subtle.ConstantTimeCompare(hash[:], x.Hash[:]) == 1 && real {
			found = i
		}
	}
	return found
}

// proved remembers the secret of a client that was right last, so that it need not be hashed slowly again: a MAC of it, and
// the verifier that it fitted, with which it ends.
type proved struct{ mark, hash [32]byte }

// guess is a secret that somebody presents as a client's, and that a host has chosen, if it is one.
type guess struct {
	name   throttle.Name // the client, and the source of the request
	secret string
	live   []Secret                // the client's; none for a client that doesn't exist
	proved *atomic.Pointer[proved] // the client's; of any other for one that doesn't exist
	skip   bool                    // no client has a chosen secret: no name has to look like one that has
}

// chosen returns the index of the verifier that the secret fits, or -1. fault.Limited: too many wait; fault.Unavailable: ctx
// ended meanwhile.
func (c *Checker) chosen(ctx context.Context, a guess) (int, error) {
	if a.secret == "" || len(a.secret) > maxChosen {
		return -1, nil
	}
	mark := c.mark(a.name.Who, a.secret)
	if p := a.proved.Load(); p != nil && hmac.Equal(p.mark[:], mark[:]) {
		return slices.IndexFunc(a.live, func(x Secret) bool { return x.Hash == p.hash }), nil
	}
	if a.skip || c.failures.Over(a.name, c.cfg.Now()) { // no slow hash for whoever has failed too often
		return -1, nil
	}

	known := slices.ContainsFunc(a.live, func(x Secret) bool { return x.Chosen() })
	if err := c.queue.enter(ctx, a.name.Who, known); err != nil {
		return -1, err
	}
	held := true
	defer func() {
		if held {
			c.queue.leave()
		}
	}()
	if c.failures.Over(a.name, c.cfg.Now()) { // by those who waited in front
		return -1, nil
	}

	// Two live secrets take two slow hashes. So does every second name, and nobody knows which: the time doesn't tell
	// whether there is such a client.
	look := c.mark(a.name.Who, "")
	found, salt := -1, make([]byte, saltBytes)
	for i := range MaxLive {
		x := Secret{Salt: salt, Rounds: slowRounds}
		real := i < len(a.live) && a.live[i].Chosen()
		if real {
			x = a.live[i]
		} else if i > 0 && look[0]%2 == 0 {
			break
		}
		if i > 0 && !known {
			if err := c.queue.pause(ctx); err != nil {
				held = false
				return -1, err
			}
		}
		if x.fits(a.secret) && real {
			found = i
			a.proved.Store(&proved{mark, x.Hash})
		}
	}
	return found, nil
}

// mark is a MAC of a client's secret under a key of this process.
func (c *Checker) mark(client, secret string) [32]byte {
	m := hmac.New(sha256.New, c.key[:])
	m.Write([]byte(client))
	m.Write([]byte{0})
	m.Write([]byte(secret))
	return [32]byte(m.Sum(nil))
}
