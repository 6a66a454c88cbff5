package misuse

import (
	"iter"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

// Find yields the opaque tokens of this module's making in text, whatever their prefix, by shape and
// checksum: refresh tokens, API keys, tickets and generated client secrets. It takes time linear in the text.
// What is to be revoked as well goes to [apitoken.Service.RevokeLeaked].
func Find(text []byte) iter.Seq[apitoken.Secret] {
	return func(yield func(apitoken.Secret) bool) {
		for s := range opaque.Find(text) {
			if !yield(apitoken.NewSecret(string(s))) {
				return
			}
		}
	}
}

// TokenPattern matches, in RE2 syntax, what Find looks at before it verifies the checksum: for
// scanners that cannot call it.
const TokenPattern = opaque.Pattern
