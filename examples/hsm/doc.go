// Package main signs access tokens with a key that never leaves a PKCS #11 token: an HSM, or SoftHSM for a try. It is a
// module of its own, because it needs cgo and a PKCS #11 library. Run it with
//
//	apt-get install softhsm2
//	go run ./examples/hsm
package main
