/* The application: a main(), an Arduino sketch or an ESP-IDF app_main() calls these two. */
#ifndef SKY_APP_H_
#define SKY_APP_H_

#ifdef __cplusplus
extern "C" {
#endif

/* Makes the network ready; once, before sky_loop(). Returns 0, having said in one line what is
   wrong, if that fails. */
int sky_setup(void);

/* Captures one frame and hands mask and cloud cover, or why there are none, to the board (board.h).
   Returns 1 if there was a cloud cover, else 0: then the next frame may well have one. */
int sky_loop(void);

#ifdef __cplusplus
}
#endif

#endif /* SKY_APP_H_ */
