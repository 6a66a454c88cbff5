package apitoken

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"strings"
)

// hashedMark begins the text of a hashed secret: hash function, rounds, then salt and hash, 48 bytes in base64.
const hashedMark = "pbkdf2-sha256$600000$"

// HashSecret makes of a client secret what [Clients.Declare] takes in its place, for configuration files that should not
// hold it in clear. The client itself goes on to present secret. It takes a tenth of a second, on purpose. ErrInvalidRequest: it
// is under 16 bytes, or was generated: of such a one the service keeps a fast hash, under which RevokeLeaked finds it.
func HashSecret(secret Secret) (_ string, failed error) {
	defer tell(&failed)
	if len(secret.Reveal()) < minChosenSecret {
		return "", fail(ErrInvalidRequest, "a secret under %d bytes", minChosenSecret)
	}
	for range Find([]byte(secret.Reveal())) {
		return "", fail(ErrInvalidRequest, "a generated secret is not hashed by its host")
	}
	b := make([]byte, 16, 48)
	rand.Read(b)
	sum, err := slowHash(secret.Reveal(), b, slowRounds)
	if err != nil {
		return "", err
	}
	return hashedMark + base64.StdEncoding.EncodeToString(append(b, sum[:]...)), nil
}

// hashed reads what HashSecret made; ok: text is of that form.
func hashed(text string) (cl clientSecret, ok bool, err error) {
	rest, ok := strings.CutPrefix(text, hashedMark)
	if !ok {
		return cl, false, nil
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(rest)
	if err != nil || len(raw) != 48 {
		return cl, true, fail(ErrInvalidRequest, "a hashed secret is damaged")
	}
	return clientSecret{Hash: [32]byte(raw[16:]), Salt: raw[:16:16], Rounds: slowRounds}, true, nil
}

func (cl *clientSecret) equal(o *clientSecret) bool {
	return cl.Rounds == o.Rounds && string(cl.Salt) == string(o.Salt) && subtle.ConstantTimeCompare(cl.Hash[:], o.Hash[:]) == 1
}
