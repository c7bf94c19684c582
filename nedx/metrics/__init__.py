"""Accuracy, noise ceilings and their certainty.

- `correlation`, `accuracy`: Pearson r, r2, determination, explained variance
- `noise_ceiling`, `split_half`, `leave_one_subject_out`: what repeats and subjects allow
- `inference`: permutations, bootstrap, false discovery rate; `intervals`: in closed form
- `scoring`: all of a Dataset at once; `trusted`: the neuroids that are predicted well
- `profiles`, `identification`: features that were decoded, by unit, image and layer
- `conversion_accuracy`, `permutation_ceiling`: trials of one subject beside those of another
- `retrieval_scores`: exact k-way accuracy of what was found in a gallery; `retrieval`: its search
- `images`: reconstructed images: pixels, structure, features, FID, KID, the CAT score
- `rsa`: RDMs, their comparison, searchlights, pairwise decoding
"""
